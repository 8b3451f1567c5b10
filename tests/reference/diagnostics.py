"""Measures of routing and of predictions, image by image, in float64 NumPy."""

import math

import numpy as np


def entropy(shares):
    """Computes the entropy in nats of shares that sum to one."""
    return -sum(p * math.log(p) for p in shares if p > 0)


def choices(gets, *, nowhere):
    """Counts the outputs that an input may choose, and none of them."""
    return sum(map(bool, gets)) + nowhere


def t_score(coupling, sends, gets, *, nowhere=False):
    """Averages ``1 - H / ln J`` over the inputs of all images [m, i, j]."""
    found = []
    for c, own, upper in zip(coupling, sends, gets, strict=True):
        for i in np.flatnonzero(own):
            row = c[i][upper]
            if nowhere:
                row = np.append(row, 1 - row.sum())
            found.append(1 - entropy(row) / math.log(choices(upper, nowhere=nowhere)))
    return np.mean(found)


def kept(coupling, sends, gets, *, nowhere=False):
    """Returns couplings above 1.5 / J, and zeros in place of all others."""
    c = np.zeros_like(coupling)
    for m, i, j in np.ndindex(coupling.shape):
        least = 1.5 / choices(gets[m], nowhere=nowhere)
        if sends[m, i] and gets[m, j] and coupling[m, i, j] > least:
            c[m, i, j] = coupling[m, i, j]
    return c


def activity(coupling, sends, gets, **options):
    """Returns each input's share of images, of those that have it, that it acts on."""
    acts = kept(coupling, sends, gets, **options).any(-1)
    return np.array(
        [acts[sends[:, i], i].mean() for i in range(acts.shape[1]) if sends[:, i].any()]
    )


def dead(activation, counts):
    """Returns which capsules have mean and standard deviation below 0.01."""
    columns = [activation[counts[:, i], i] for i in range(activation.shape[1])]
    return np.array([len(a) > 0 and max(a.mean(), a.std()) < 0.01 for a in columns])


def bonding(coupling, sends, gets, **options):
    """Computes the activity-weighted mean of the largest couplings."""
    c = kept(coupling, sends, gets, **options)
    total = weights = 0.0
    for i in range(c.shape[1]):
        rows = c[sends[:, i], i]
        rows = rows[rows.any(-1)]
        if len(rows):
            own = len(rows) / sends[:, i].sum()
            total += own * rows.max(-1).mean()
            weights += own
    return total / weights if weights else 0.0


def dynamics(coupling, sends, gets, **options):
    """Computes the activity-weighted deviation of couplings."""
    c = kept(coupling, sends, gets, **options)
    most_choices = max(choices(row, **options) for row in gets)
    random = math.sqrt(1 / most_choices * (1 - 1 / most_choices))
    total = weights = 0.0
    for i in range(c.shape[1]):
        acts = sends[:, i] & c[:, i].any(-1)
        if not acts.any():
            continue
        own = acts.sum() / sends[:, i].sum()
        deviations = []
        for j in np.flatnonzero(gets.any(0)):
            images = acts & gets[:, j]
            deviations.append(c[images, i, j].std() if images.any() else 0.0)
        total += own * np.mean(deviations) / c[acts, i].max() / random
        weights += own
    return total / weights if weights else 0.0


def shares(coupling, activation, sends, gets):
    """Returns each output's mean share of the inputs; NaN if never there."""
    found = [[] for _ in range(coupling.shape[2])]
    for c, a, own, upper in zip(coupling, activation, sends, gets, strict=True):
        total = a[own].sum()
        for j in np.flatnonzero(upper):
            if total > 0:
                found[j].append(
                    sum(c[i, j] * a[i] for i in np.flatnonzero(own)) / total
                )
    return np.array([np.mean(one) if one else np.nan for one in found])


def parse_trees(coupling, label, num_bins):
    """Counts by class the distinct rows of rounded couplings, as strings."""
    count = {}
    edges = np.linspace(-0.5, num_bins - 0.5, num_bins + 1) / (num_bins - 1)
    for c, own in zip(coupling, label, strict=True):
        text = "-".join(str(np.searchsorted(edges, x, side="right")) for x in c[:, own])
        trees = count.setdefault(int(own), {})
        trees[text] = trees.get(text, 0) + 1
    return count


def calibration_error(probability, label, num_bins):
    """Computes the expected calibration error, bin by bin."""
    confidence, best = probability.max(-1), probability.argmax(-1)
    total = 0.0
    for b in range(num_bins):
        here = (confidence > b / num_bins) & (confidence <= (b + 1) / num_bins)
        if here.any():
            right = (best == label)[here].mean()
            total += here.mean() * abs(right - confidence[here].mean())
    return total


def mean_loss(z, label, temperature):
    """Computes the mean of ``-ln softmax(z / T)_label``."""
    z = z / temperature
    z = z - z.max(-1, keepdims=True)
    log_p = z - np.log(np.exp(z).sum(-1, keepdims=True))
    return -np.mean(log_p[np.arange(len(label)), label])
