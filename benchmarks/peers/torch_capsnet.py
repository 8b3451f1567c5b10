"""The paper's capsule network in PyTorch, as a contender of ``train_step.py``.

    python torch_capsnet.py --work train --batch 128 --dtype bfloat16 --compile
    python torch_capsnet.py --work rows --device cuda \
        --rows '[[128, "float32", "eager"], [128, "bfloat16", "compiled"]]'

Imports nothing of capsjax, and runs in an environment of its own. The works and the
lines read and written are those of ``worker.py``. Between them its threads sleep, after
the millisecond or so that GNU OpenMP spins by default (``OMP_WAIT_POLICY`` is not set).

``rows`` is for ``accelerator.py``: training steps, one row after the other, each with a
line that says how long it took; there the data lie on the device as bytes.
"""

import argparse
import contextlib
import functools
import json
import resource
import statistics
import sys
import time

import numpy as np

try:
    import torch
except ModuleNotFoundError as error:
    print(json.dumps({"missing": error.name}))
    sys.exit(1)
import torch._dynamo
import torch._inductor.config
import torch.nn.functional as F
from torch import nn


def squash(s):
    length = torch.linalg.vector_norm(s, dim=-1, keepdim=True)
    return s * length / (1 + length * length)


def cast_votes(capsules, weight):
    # In this order of axes the products of a routing read memory in order: 1.4 times
    # faster than [b, i, j, d].
    return torch.einsum("ijdc,bic->bjid", weight, capsules).contiguous()


def route(capsules, weight, num_iterations=3, bias=None):
    votes = cast_votes(capsules, weight)
    logit = votes.new_zeros(votes.shape[:-1])
    for iteration in range(num_iterations):
        coupling = torch.softmax(logit, dim=1)
        s = torch.einsum("bji,bjid->bjd", coupling, votes)
        pose = squash(s if bias is None else s + bias)
        if iteration < num_iterations - 1:
            logit = logit + torch.einsum("bjid,bjd->bji", votes, pose)
    return pose


class CapsNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 256, 9)
        self.primary = nn.Conv2d(256, 256, 9, stride=2)
        self.weight = nn.Parameter(0.02 * torch.randn(1152, 10, 16, 8))
        self.decoder = nn.Sequential(
            *(nn.Linear(160, 512), nn.ReLU()),
            *(nn.Linear(512, 1024), nn.ReLU()),
            *(nn.Linear(1024, 784), nn.Sigmoid()),
        )

    def encode(self, image):
        s = self.primary(F.relu(self.conv(image)))
        # Type and component were channels; a capsule is (row, column, type).
        s = s.permute(0, 2, 3, 1).reshape(-1, 1152, 8)
        # Under autocast only the convolutions and the decoder are in bfloat16.
        with torch.autocast(s.device.type, enabled=False):
            return route(squash(s.float()), self.weight)


class Block(nn.Module):
    """Batch normalisation, convolution and ReLU, added to the normalised image."""

    def __init__(self, channels, features=None):
        super().__init__()
        self.is_residual = features is None
        self.norm = nn.BatchNorm2d(channels)
        self.conv = nn.Conv2d(channels, features or channels, 3, padding=1)

    def forward(self, x):
        z = self.norm(x)
        y = F.relu(self.conv(z))
        return z + y if self.is_residual else y


class StemCapsNet(CapsNet):
    """The same capsules behind ``capsjax.models.StemCapsNet``'s convolutions."""

    def __init__(self, width):
        super().__init__()
        del self.conv
        self.stem = nn.Sequential(
            *(nn.Conv2d(1, width, 5, padding=2), nn.ReLU()),
            *(Block(width), nn.MaxPool2d(2), Block(width)),
            *(Block(width, 2 * width), nn.MaxPool2d(2), Block(2 * width)),
            Block(2 * width, 4 * width),
            *(nn.MaxPool2d(2, ceil_mode=True), Block(4 * width)),
            nn.BatchNorm2d(4 * width),
        )
        self.primary = nn.Conv2d(4 * width, 512, 1)
        self.weight = nn.Parameter(0.02 * torch.randn(1024, 10, 16, 8))

    def encode(self, image):
        s = self.primary(self.stem(image))
        s = s.permute(0, 2, 3, 1).reshape(-1, 1024, 8)
        with torch.autocast(s.device.type, enabled=False):
            return route(squash(s.float()), self.weight)


def loss_fn(model, image, label):
    pose = model.encode(image)
    length, is_present = pose.norm(dim=-1), F.one_hot(label, 10)
    too_short, too_long = F.relu(0.9 - length) ** 2, F.relu(length - 0.1) ** 2
    margin = is_present * too_short + 0.5 * (1 - is_present) * too_long
    drawn = model.decoder((pose * is_present[..., None]).flatten(1)).float()
    error = (drawn - image.flatten(1)) ** 2
    return (margin.sum(1) + 0.0005 * error.sum(1)).mean()


class Recipe:
    def __init__(self, arguments):
        self.batch, self.dtype = arguments.batch, getattr(torch, arguments.dtype)
        self.device, self.width = arguments.device, arguments.stem
        # Compiled for these very sizes: no row pays for those of another.
        options = {"dynamic": False} if self.device != "cpu" else {}
        if arguments.graphs:
            options["mode"] = "reduce-overhead"
        self.compiled = lambda f: f
        if arguments.compile:
            self.compiled = functools.partial(torch.compile, **options)
        is_plain = self.dtype == torch.float32 and self.device == "cpu"
        is_plain = is_plain and not self.width
        self.format = torch.contiguous_format if is_plain else torch.channels_last

    def model(self):
        torch.manual_seed(0)
        model = StemCapsNet(self.width) if self.width else CapsNet()
        return model.to(self.device, memory_format=self.format)

    def pixels(self, image):
        pixels = image.contiguous(memory_format=self.format)
        return pixels.float() / 255

    def autocast(self):
        if self.dtype == torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(self.device, self.dtype)

    def step(self, model):
        optimizer = torch.optim.Adam(model.parameters(), 1e-3, fused=True)
        loss_of = self.compiled(loss_fn)

        def step(image, label):
            optimizer.zero_grad()
            with self.autocast():
                loss = loss_of(model, self.pixels(image), label)
            loss.backward()
            optimizer.step()
            return loss.detach()

        return step


def train(recipe):
    rng = np.random.default_rng(0)
    data = rng.integers(0, 256, (2048, 1, 28, 28), np.uint8)
    labels = torch.from_numpy(rng.integers(0, 10, 2048))
    step = recipe.step(recipe.model())

    def call():
        indices = rng.integers(0, len(data), recipe.batch)
        return step(torch.from_numpy(data[indices]), labels[indices]).item()

    return call, {"images": recipe.batch}


def time_rows(arguments):
    """Training with the data on the device, where nothing waits for the host.

    Products of float32 may be of TF32, as they are in XLA.
    """
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.benchmark = True
    device = torch.device(arguments.device)
    is_cuda = device.type == "cuda"
    synchronize = torch.cuda.synchronize if is_cuda else lambda: None
    about = {"version": torch.__version__, "device": device.type}
    if is_cuda:
        about |= {"kind": torch.cuda.get_device_name(), "cuda": torch.version.cuda}
    print(json.dumps(about), flush=True)
    generator = torch.Generator(device).manual_seed(0)
    draw = functools.partial(torch.randint, generator=generator, device=device)
    data = draw(0, 256, (60_000, 1, 28, 28), dtype=torch.uint8)
    labels = draw(0, 10, (len(data),))

    def time_row(batch, dtype, how):
        arguments.batch, arguments.dtype = batch, dtype
        arguments.compile, arguments.graphs = how != "eager", how == "graphs"
        recipe = Recipe(arguments)
        step = recipe.step(recipe.model())

        def calls(times):
            started = time.perf_counter()
            for _ in range(times):
                index = draw(0, len(data), (batch,))
                step(data[index], labels[index])
            synchronize()
            return (time.perf_counter() - started) / times

        if is_cuda:
            torch.cuda.reset_peak_memory_stats()
        first = calls(1)
        again = calls(3)
        times = max(1, round(arguments.seconds / 5 / again))
        seconds = statistics.median(calls(times) for _ in range(5))
        return {
            "batch": batch,
            "dtype": dtype,
            "images_per_second": batch / seconds,
            "compile_seconds": first - seconds,
            "memory_bytes": torch.cuda.max_memory_allocated() if is_cuda else None,
        }

    for row in json.loads(arguments.rows):
        try:
            answer = time_row(*row)
        except Exception as error:
            text = f"{type(error).__name__}: {error}"
            answer = {"error": text[:300]}
        print(json.dumps(answer), flush=True)
        # What a row has compiled must not make the next one's sizes variable.
        torch._dynamo.reset()


def routing(recipe):
    torch.manual_seed(0)
    capsules = squash(torch.randn(recipe.batch, 1152, 8)).requires_grad_()
    weight = (0.02 * torch.randn(1152, 10, 16, 8)).requires_grad_()
    gradient = torch.ones(recipe.batch, 10, 16)
    function = recipe.compiled(route)

    def call():
        pose = function(capsules, weight)
        return torch.autograd.grad(pose, (capsules, weight), gradient)

    return call, {"images": recipe.batch}


def inference(recipe):
    data = np.random.default_rng(0).integers(0, 256, (recipe.batch, 1, 28, 28), "uint8")
    # The compiler may lay out the weights once, as our `prepare` does.
    torch._inductor.config.freezing = True
    encode = recipe.compiled(recipe.model().eval().encode)

    def call():
        with torch.no_grad(), recipe.autocast():
            return encode(recipe.pixels(torch.from_numpy(data))).norm(dim=-1).numpy()

    return call, {"images": recipe.batch}


def gemm(recipe):
    a, b = torch.randn(2, 2048, 2048, dtype=recipe.dtype)
    return lambda: a @ b, {"multiplications": len(a) ** 3}


def check(recipe, file):
    given = dict(np.load(file))
    image, label = (torch.from_numpy(given.pop(n)) for n in ("image", "label"))
    model = recipe.model()
    model.load_state_dict({n: torch.from_numpy(a) for n, a in given.items()})
    with torch.no_grad(), recipe.autocast():
        length = model.encode(recipe.pixels(image)).norm(dim=-1)
    step = recipe.step(model)
    losses = [step(image, label).item() for _ in range(4)]
    print(json.dumps({"length": length.tolist(), "loss": losses}))


def seconds_of(call, times=1):
    started = time.perf_counter()
    for _ in range(times):
        call()
    return time.perf_counter() - started


def serve(call, work):
    """The same loop as in ``worker.py``."""
    first, again = seconds_of(call), seconds_of(call)
    work |= {"compile_seconds": first - again, "call_seconds": again}
    print(json.dumps(work | {"version": torch.__version__}), flush=True)
    for line in sys.stdin:
        before = time.process_time()
        seconds = seconds_of(call, int(line.split()[1]))
        cpu = time.process_time() - before
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
        answer = {"seconds": seconds, "cpu_seconds": cpu, "peak_mb": peak}
        print(json.dumps(answer), flush=True)


def main():
    works = {w.__name__: w for w in (train, routing, inference, gemm)}
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", choices=[*works, "check", "rows"], default="train")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--stem", type=int, help="channels of a stem in its place")
    parser.add_argument("--file", help="weights, images and labels to check")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--graphs", action="store_true", help="compile to CUDA graphs")
    parser.add_argument("--rows", help="batch, type and how, of each, in JSON")
    parser.add_argument("--seconds", type=float, default=1, help="to time each row")
    arguments = parser.parse_args()
    recipe = Recipe(arguments)
    if arguments.work == "rows":
        time_rows(arguments)
    elif arguments.work == "check":
        check(recipe, arguments.file)
    else:
        serve(*works[arguments.work](recipe))


if __name__ == "__main__":
    main()
