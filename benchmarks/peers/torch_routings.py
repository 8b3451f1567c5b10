"""Every routing algorithm in PyTorch, as a contender of ``routing_algorithms.py``.

    python torch_routings.py --algorithm em --rounds 2 --given FILE --result FILE

Imports nothing of capsjax, and runs in an environment of its own. The equations are
those of capsjax with its default numbers, written the usual way: einsum makes the votes
``[b, j, i, d]``, the rounds are a loop over them, and autograd makes the gradients.

Reads all arrays from a file, and writes what it computes of them to another. Then
serves like ``torch_capsnet.py``; its first line also has the memory that the process
took for the first call, at its peak.
"""

import argparse
import math
import pathlib

import numpy as np
import torch
import torch.nn.functional as F
from torch_capsnet import cast_votes, route, serve, squash


def dynamic(capsules, weight, rounds, bias=None):
    pose = route(capsules, weight, rounds, bias)
    return pose, pose.norm(dim=-1)


def cast_votes_once(capsules, weight):
    """Makes votes for a single sum, which putting them in order does not pay for."""
    return torch.einsum("ijdc,bic->bjid", weight, capsules)


def uniform(capsules, weight):
    votes = cast_votes_once(capsules, weight)
    pose = squash(votes.sum(2) / votes.shape[1])
    return pose, pose.norm(dim=-1)


def self_attention(capsules, weight, bias):
    votes = cast_votes(capsules, weight)
    agreement = torch.einsum("bjid,bjkd->bji", votes, votes)
    coupling = torch.softmax(agreement / math.sqrt(votes.shape[-1]), dim=1)
    s = torch.einsum("bji,bjid->bjd", coupling + bias.T, votes)
    length = s.norm(dim=-1, keepdim=True)
    pose = (1 - torch.exp(-length)) * s / length
    return pose, pose.norm(dim=-1)


def inverted_attention(capsules, weight, scale, offset, score, score_bias, rounds):
    votes = cast_votes(capsules, weight)
    coupling, pose = torch.full_like(votes[..., 0], 1 / votes.shape[1]), None
    for _ in range(rounds):
        if pose is not None:
            agreement = torch.einsum("bjid,bjd->bji", votes, pose)
            coupling = torch.softmax(agreement / math.sqrt(votes.shape[-1]), dim=1)
        s = torch.einsum("bji,bjid->bjd", coupling, votes)
        pose = F.layer_norm(s, s.shape[-1:], scale, offset, 1e-5)
    return pose, pose @ score + score_bias


def self_routing(capsules, weight, activation, route_weight, route_bias):
    votes = cast_votes_once(capsules, weight)
    logit = torch.einsum("bic,ijc->bji", capsules, route_weight) + route_bias.T
    share = torch.softmax(logit, dim=1) * activation[:, None]
    mass = share.sum(2)
    pose = torch.einsum("bji,bjid->bjd", share / mass[..., None], votes)
    return pose, mass / activation.sum(1, keepdim=True)


def fit(share, votes):
    """Returns mass, mean and squared distances of the votes, and their variance."""
    mass = share.sum(2)
    share = (share / mass[..., None])[..., None]
    mean = (share * votes).sum(2, keepdim=True)
    square = (votes - mean) ** 2
    return mass, mean.squeeze(2), square, (share * square).sum(2)


def em(capsules, weight, activation, beta_u, beta_a, rounds):
    votes = cast_votes(capsules, weight)
    _, num_outputs, num_inputs, _ = votes.shape
    coupling = torch.full_like(votes[..., 0], 1 / num_outputs)
    for iteration in range(1, rounds + 1):
        mass, mean, square, variance = fit(coupling * activation[:, None], votes)
        variance = variance + 5e-4
        cost = (beta_u[:, None] + variance.log() / 2).sum(-1) * mass
        share = (1 - 0.95**iteration) / (1 - 0.95**rounds)
        last = 0.01 * (1 - 0.95**rounds)
        logit = share * (beta_a - last * 100 * num_outputs / num_inputs * cost)
        present = torch.sigmoid(logit)
        if iteration < rounds:
            away = (square / variance[:, :, None]).sum(-1)
            spread = (2 * math.pi * variance).log().sum(-1)
            output = present.log() - spread / 2
            coupling = torch.softmax(output[..., None] - away / 2, dim=1)
    return mean, present


def variational_bayes(capsules, weight, activation, beta_u, beta_a, rounds):
    votes = cast_votes(capsules, weight)
    _, num_outputs, _, dim = votes.shape
    lower = torch.arange(dim)
    coupling = torch.full_like(votes[..., 0], 1 / num_outputs)
    for iteration in range(1, rounds + 1):
        mass, mean, _, variance = fit(coupling * activation[:, None], votes)
        # The priors: concentration and count of 1, precision of 1, freedom of d + 1.
        concentration = count = 1 + mass
        freedom = dim + 1 + mass
        pull = (mass / count)[..., None] * mean**2
        scale = 1 / (1 + mass[..., None] * variance + pull)
        mean = (mass / count)[..., None] * mean
        total = concentration.sum(1, keepdim=True)
        log_share = torch.digamma(concentration) - torch.digamma(total)
        halves = torch.digamma((freedom[..., None] - lower) / 2)
        log_precision = dim * math.log(2) + (halves + scale.log()).sum(-1)
        if iteration < rounds:
            away = (scale[:, :, None] * (votes - mean[:, :, None]) ** 2).sum(-1)
            output = log_precision - dim * math.log(2 * math.pi) - dim / count
            log_p = (output[..., None] - freedom[..., None] * away) / 2
            coupling = torch.softmax(log_share[..., None] + log_p, dim=1)
    entropy = dim / 2 * math.log(2 * math.pi * math.e) - log_precision / 2
    return mean, beta_a - beta_u - log_share.exp() * entropy


ROUTINGS = {
    f.__name__: f
    for f in (
        dynamic,
        uniform,
        self_attention,
        inverted_attention,
        self_routing,
        em,
        variational_bayes,
    )
}


def memory_mb(field):
    """Returns a line of Linux's account of this process: not a number elsewhere.

    The peak that ``resource`` has would be the parent's if that is larger.
    """
    path = pathlib.Path("/proc/self/status")
    lines = path.read_text().splitlines() if path.exists() else ()
    fields = dict(line.split(":") for line in lines if line.startswith("Vm"))
    return int(fields[field].split()[0]) * 1.024e-3 if fields else math.nan


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--algorithm", choices=ROUTINGS, required=True)
    parser.add_argument("--rounds", type=int, help="if the algorithm has rounds")
    parser.add_argument("--given", required=True, help="the operands and gradients")
    parser.add_argument("--result", required=True, help="where to write the outcome")
    parser.add_argument("--backward", action="store_true", help="gradients too")
    parser.add_argument("--compile", action="store_true")
    arguments = parser.parse_args()
    operands = {n: torch.from_numpy(a) for n, a in np.load(arguments.given).items()}
    gradient = operands.pop("gradient.pose"), operands.pop("gradient.activation")
    for operand in operands.values():
        operand.requires_grad_(arguments.backward)
    rounds = {} if arguments.rounds is None else {"rounds": arguments.rounds}
    function = ROUTINGS[arguments.algorithm]
    if arguments.compile:
        function = torch.compile(function, dynamic=False)

    def call():
        routed = function(**operands, **rounds)
        if not arguments.backward:
            return routed
        return routed + torch.autograd.grad(routed, [*operands.values()], gradient)

    before = memory_mb("VmRSS")
    result = call()
    grown = memory_mb("VmHWM") - before
    np.savez(arguments.result, *(x.detach().numpy() for x in result))
    serve(call, {"grown_mb": grown})


if __name__ == "__main__":
    main()
