"""More networks in PyTorch, as contenders of ``train_step.py``.

    python torch_networks.py --network matrix --batch 32

Imports nothing of capsjax, and runs in an environment of its own. The networks and
losses are those of ``experiments/mnist.py:efficient``, ``experiments/stacks.py``, its
``matrix``, and ``experiments/photos.py``, written the usual way: windows by ``unfold``,
votes by einsum, rounds as a loop. Serves like ``torch_capsnet.py``; its first line also
has the number of parameters.
"""

import argparse
import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch_capsnet import serve, squash
from torch_routings import self_attention

EPSILON, TEMPERATURE = 5e-4, 0.01  # The least variance; EM's inverse temperature.


def decoder():
    return nn.Sequential(
        *(nn.Linear(160, 512), nn.ReLU()),
        *(nn.Linear(512, 1024), nn.ReLU()),
        *(nn.Linear(1024, 784), nn.Sigmoid()),
    )


def margin_loss(length, is_present):
    too_short, too_long = F.relu(0.9 - length) ** 2, F.relu(length - 0.1) ** 2
    return (is_present * too_short + 0.5 * (1 - is_present) * too_long).sum(1)


def spread_loss(activation, is_present, margin=0.5):
    own = (activation * is_present).sum(1, keepdim=True)
    return ((1 - is_present) * F.relu(margin - (own - activation)) ** 2).sum(1)


def dynamic(votes, bias, rounds=3):
    """Routes votes ``[b, j, i, d]``."""
    logit = torch.zeros_like(votes[..., 0])
    for iteration in range(rounds):
        coupling = torch.softmax(logit, dim=1)
        pose = squash(torch.einsum("bji,bjid->bjd", coupling, votes) + bias)
        if iteration < rounds - 1:
            logit = logit + torch.einsum("bjid,bjd->bji", votes, pose)
    return pose


class Efficient(nn.Module):
    """Efficient-CapsNet."""

    shape = 1, 28, 28

    def __init__(self):
        super().__init__()
        layers, channels = [], 1
        for features, kernel, stride in (
            (32, 5, 1),
            (64, 3, 1),
            (64, 3, 1),
            (128, 3, 2),
        ):
            layers += [nn.Conv2d(channels, features, kernel, stride), nn.ReLU()]
            layers += [nn.BatchNorm2d(features)]
            channels = features
        self.convs = nn.Sequential(*layers)
        self.primary = nn.Conv2d(128, 128, 9, groups=128)
        self.weight = nn.Parameter(0.0449 * torch.randn(16, 10, 16, 8))
        self.bias = nn.Parameter(torch.zeros(16, 10))
        self.decoder = decoder()

    def forward(self, image, is_present):
        s = self.primary(self.convs(image)).reshape(-1, 16, 8)
        norm = s.norm(dim=-1, keepdim=True)
        capsules = (1 - torch.exp(-norm)) * s / norm
        pose, length = self_attention(capsules, self.weight, self.bias)
        drawn = self.decoder((pose * is_present[..., None]).flatten(1))
        error = ((drawn - image.flatten(1)) ** 2).sum(1)
        return margin_loss(length, is_present) + 0.0005 * error


class Photos(nn.Module):
    """Residual blocks, and class capsules whose matrices all positions share."""

    shape = 3, 128, 128

    def __init__(self, widths=(32, 64, 128, 256)):
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, widths[0], 7, 4, padding=3, bias=False),
            *(nn.BatchNorm2d(widths[0]), nn.ReLU()),
        )
        channels, self.blocks, self.shortcuts = widths[0], nn.ModuleList(), []
        for stage, width in enumerate(widths):
            stride = 2 if stage else 1
            self.blocks.append(
                nn.Sequential(
                    nn.Conv2d(channels, width, 3, stride, padding=1, bias=False),
                    *(nn.BatchNorm2d(width), nn.ReLU()),
                    nn.Conv2d(width, width, 3, padding=1, bias=False),
                    nn.BatchNorm2d(width),
                )
            )
            shortcut = nn.Identity()
            if stage:
                shortcut = nn.Sequential(
                    nn.Conv2d(channels, width, 1, stride, bias=False),
                    nn.BatchNorm2d(width),
                )
            self.shortcuts.append(shortcut)
            channels = width
        self.shortcuts = nn.ModuleList(self.shortcuts)
        self.primary = nn.Conv2d(channels, 32 * 8, 1)
        self.weight = nn.Parameter(0.02 * torch.randn(32, 10, 16, 8))

    def forward(self, image, is_present):
        hidden = self.stem(image)
        for block, shortcut in zip(self.blocks, self.shortcuts, strict=True):
            hidden = F.relu(shortcut(hidden) + block(hidden))
        s = self.primary(hidden).permute(0, 2, 3, 1)
        capsules = squash(s.reshape(len(s), -1, 32, 8))
        votes = torch.einsum("bptc,tjdc->bjptd", capsules, self.weight).flatten(2, 3)
        return margin_loss(dynamic(votes, 0).norm(dim=-1), is_present)


def windows(grid, kernel, stride):
    """Returns windows of a map of capsules ``[b, h, w, t, c]``: ``[b n, k, t, c]``."""
    by_rows = grid.unfold(1, kernel, stride).unfold(2, kernel, stride)
    return by_rows.permute(0, 1, 2, 5, 6, 3, 4).flatten(0, 2).flatten(1, 2)


class Stacked(nn.Module):
    """Vectors: a layer of convolutional capsules, and class capsules."""

    shape = 1, 28, 28

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 64, 5, 2)
        self.primary = nn.Conv2d(64, 64, 3)
        self.weight = nn.Parameter(0.1 * torch.randn(9, 8, 16, 8, 8))
        self.bias = nn.Parameter(torch.full((16, 8), 0.1))
        self.class_weight = nn.Parameter(0.1 * torch.randn(25, 16, 10, 8, 8))
        self.class_bias = nn.Parameter(torch.full((10, 8), 0.1))

    def forward(self, image, is_present):
        s = self.primary(F.relu(self.conv(image))).permute(0, 2, 3, 1)
        capsules = squash(s.reshape(*s.shape[:3], 8, 8))
        # As with padding="SAME": ten positions, and five windows in steps of two.
        capsules = F.pad(capsules, (0, 0, 0, 0, 0, 1, 0, 1))
        below = windows(capsules, 3, 2)
        votes = torch.einsum("bktc,ktjdc->bjktd", below, self.weight).flatten(2, 3)
        pose = dynamic(votes, self.bias).reshape(len(image), -1, 16, 8)
        votes = torch.einsum("bptc,ptjdc->bjptd", pose, self.class_weight)
        pose = dynamic(votes.flatten(2, 3), self.class_bias)
        return margin_loss(pose.norm(dim=-1), is_present)


class EM(nn.Module):
    """EM routing of two rounds, whose windows may share their inputs.

    ``side`` is the map's below and ``kernel`` the window's; without them all inputs go
    to the same outputs.
    """

    def __init__(self, outputs, side=None, kernel=None, stride=None):
        super().__init__()
        self.beta_u = nn.Parameter(torch.zeros(outputs))
        self.beta_a = nn.Parameter(torch.full((outputs,), -2.0))
        self.side, self.kernel, self.stride = side, kernel, stride

    def spread(self, x):
        """Sums ``[b, n, k, t]`` over the windows of an input, for each window."""
        b, n, k, t = x.shape
        columns = x.permute(0, 3, 2, 1).reshape(b, t * k, n)
        own = {"kernel_size": self.kernel, "stride": self.stride}
        total = F.unfold(F.fold(columns, self.side, **own), **own)
        return total.reshape(b, t, k, n).permute(0, 3, 2, 1)

    def couple(self, logit, images):
        """Returns couplings ``[b, j, i]``, with a batch of windows."""
        if self.kernel is None:
            return torch.softmax(logit, dim=1)
        k = self.kernel**2
        n = len(logit) // images
        # One offset for all windows of an input keeps the quotient.
        most = logit.amax(1).reshape(images, n, k, -1).amax((1, 2), keepdim=True)
        logit = logit.unflatten(0, (images, n)).unflatten(-1, (k, -1))
        e = torch.exp(logit - most[:, :, None])
        total = self.spread(e.sum(2)).clamp_min(1e-30)
        return (e / total[:, :, None]).flatten(3, 4).flatten(0, 1)

    def forward(self, votes, activation, images):
        coupling = self.couple(torch.zeros_like(votes[..., 0]), images)
        factor = 100 / coupling.detach().sum(2).clamp_min(1e-4)
        last = TEMPERATURE * (1 - 0.95**2)
        for iteration in (1, 2):
            share = coupling * activation[:, None]
            mass = share.sum(2)
            weight = share / mass.clamp_min(1e-7)[..., None]
            mean = torch.einsum("bji,bjid->bjd", weight, votes)
            square = (votes - mean[:, :, None]) ** 2
            variance = torch.einsum("bji,bjid->bjd", weight, square) + EPSILON
            entropy = (self.beta_u[:, None] + variance.log() / 2).sum(-1)
            step = (1 - 0.95**iteration) / (1 - 0.95**2)
            logit = step * (self.beta_a - last * factor * mass * entropy)
            if iteration == 1:
                away = torch.einsum("bjid,bjd->bji", square, 1 / variance)
                offset = (
                    F.logsigmoid(logit) - (2 * math.pi * variance).log().sum(-1) / 2
                )
                coupling = self.couple(offset[..., None] - away / 2, images)
        return mean, torch.sigmoid(logit)


def cast_matrices(pose, weight):
    """Returns votes ``[b, j, i, d]`` of poses ``[b, p, t, 16]``: ``M W``."""
    matrix = pose.unflatten(-1, (4, 4))
    votes = torch.einsum("bptrx,ptjxs->bjptrs", matrix, weight)
    return votes.flatten(2, 3).flatten(3, 4)


class Matrix(nn.Module):
    """The small matrix capsules of Hinton, Sabour and Frosst 2018."""

    shape = 1, 28, 28

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 64, 5, 2)
        self.pose, self.activation = nn.Conv2d(64, 128, 1), nn.Conv2d(64, 8, 1)
        self.weights = nn.ParameterList(
            0.1 * torch.randn(k, t, j, 4, 4)
            for k, t, j in ((9, 8, 16), (9, 16, 16), (1, 16, 10))
        )
        self.routings = nn.ModuleList((EM(16, 11, 3, 2), EM(16, 5, 3, 1), EM(10)))
        grid = torch.zeros(3, 3, 1, 16)
        centred = (torch.arange(3) + 0.5) / 3 - 0.5
        grid[..., 3], grid[..., 7] = centred[:, None, None], centred[None, :, None]
        self.register_buffer("coordinates", grid.expand(3, 3, 16, 16).reshape(144, 16))

    def forward(self, image, is_present):
        images = len(image)
        features = F.relu(self.conv(image))
        pose = self.pose(features).permute(0, 2, 3, 1).unflatten(-1, (8, 16))
        activation = torch.sigmoid(self.activation(features)).permute(0, 2, 3, 1)
        for number, side, stride in ((0, 11, 2), (1, 5, 1)):
            pose = windows(pose[:, :side, :side], 3, stride)
            present = windows(activation[:, :side, :side, :, None], 3, stride)
            votes = cast_matrices(pose, self.weights[number])
            pose, activation = self.routings[number](
                votes, present[..., 0].flatten(1), images
            )
            side = math.isqrt(len(pose) // images)
            pose = pose.reshape(images, side, side, 16, 16)
            activation = activation.reshape(images, side, side, 16)
        weight = self.weights[2].expand(9, -1, -1, -1, -1)
        votes = cast_matrices(pose.flatten(1, 2), weight) + self.coordinates
        _, present = self.routings[2](votes, activation.flatten(1), images)
        return spread_loss(present, is_present)


NETWORKS = {
    "efficient": Efficient,
    "stacked": Stacked,
    "matrix": Matrix,
    "photos": Photos,
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--network", choices=NETWORKS, required=True)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--compile", action="store_true")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    model = NETWORKS[arguments.network]()
    optimizer = torch.optim.Adam(model.parameters(), 1e-3, fused=True)
    rng = np.random.default_rng(0)
    data = rng.integers(0, 256, (512, *model.shape), np.uint8)
    labels = torch.from_numpy(rng.integers(0, 10, len(data)))
    run = torch.compile(model, dynamic=False) if arguments.compile else model

    def call():
        index = rng.integers(0, len(data), arguments.batch)
        image = torch.from_numpy(data[index]).float() / 255
        optimizer.zero_grad()
        loss = run(image, F.one_hot(labels[index], 10).float()).mean()
        loss.backward()
        optimizer.step()
        return loss.item()

    parameters = sum(p.numel() for p in model.parameters())
    serve(call, {"images": arguments.batch, "parameters": parameters})


if __name__ == "__main__":
    main()
