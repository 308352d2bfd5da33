"""Every map equals a reference in float64, at an even and an odd size, and sums to one with its padding."""

import copy

import numpy as np
import pytest
import torch

from globalvit.explain import explain, views
from globalvit.explain.scene import Scene, evaluating
from globalvit.explain.trace import blocks_of, run_backbone

SIZES = [64, (75, 102)]
EQUAL = {"rtol": 0, "atol": 1e-6}
PIXEL, REGION = (60, 30), (10, 20, 55, 48)


def double(tensor):
    return tensor.detach().double().numpy()


def linear(layer, x):
    return x @ double(layer.weight).T + (0 if layer.bias is None else double(layer.bias))


def norm(layer, x):
    centered = x - x.mean(-1, keepdims=True)
    scaled = centered / np.sqrt((centered**2).mean(-1, keepdims=True) + layer.eps)
    return scaled * double(layer.weight) + double(layer.bias)


def softmax(x):
    raised = np.exp(x - x.max(-1, keepdims=True))
    return raised / raised.sum(-1, keepdims=True)


def heads_of(x, heads):
    """(N, C) → h times (N, d)."""
    return np.split(x, heads, axis=-1)


def padded(x, side):
    return np.pad(x, ((0, -x.shape[0] % side), (0, -x.shape[1] % side), (0, 0)))


def bias_of(table, window):
    """(h, N, N), read from the table entry by entry."""
    places = [(row, column) for row in range(window) for column in range(window)]
    out = np.empty((table.shape[1], len(places), len(places)))
    for i, (row, column) in enumerate(places):
        for j, (key_row, key_column) in enumerate(places):
            out[:, i, j] = table[(row - key_row + window - 1) * (2 * window - 1) + column - key_column + window - 1]
    return out


def full_matrix(tokens, cells_of_windows, q_of, k_of, heads, bias=None):
    """(h, tokens, tokens): each window's softmax at its own rows and columns, 0 elsewhere."""
    out = np.zeros((heads, tokens, tokens))
    for cells in cells_of_windows:
        for head, (q, k) in enumerate(zip(heads_of(q_of(cells), heads), heads_of(k_of(cells), heads), strict=True)):
            logits = q @ k.T / np.sqrt(q.shape[-1]) + (0 if bias is None else bias[head])
            out[head][np.ix_(cells, cells)] = softmax(logits)
    return out


def tiles(rows, columns, height, width):
    """The cell numbers of every window of height × width in a grid."""
    numbers = np.arange(rows * columns).reshape(rows, columns)
    return [
        numbers[top : top + height, left : left + width].ravel()
        for top in range(0, rows, height)
        for left in range(0, columns, width)
    ]


def gcvit_block(block, x_HWC, query_hNd):
    """(h, T, T) over the padded grid's tokens, and that grid."""
    attention = block.attention
    grid = padded(norm(block.norm1, double(x_HWC)), attention.window)
    flat = grid.reshape(-1, grid.shape[-1])
    heads = attention.bias_table.shape[1]
    bias = bias_of(double(attention.bias_table), attention.window)
    if attention.is_global:
        k, _ = np.split(linear(attention.kv, flat), 2, axis=-1)
        query = np.concatenate(double(query_hNd), axis=-1)
        q_of = lambda _: query  # noqa: E731
    else:
        q, k, _ = np.split(linear(attention.qkv, flat), 3, axis=-1)
        q_of = lambda cells: q[cells]  # noqa: E731
    windows = tiles(*grid.shape[:2], attention.window, attention.window)
    return full_matrix(len(flat), windows, q_of, lambda cells: k[cells], heads, bias), grid.shape[:2]


def gpvit_block(block, x_HWC):
    """(h, T, T), the vertical heads first, over the padded grid's tokens, and that grid."""
    attention = block.attention
    grid = padded(norm(block.norm1, double(x_HWC)), attention.stripe)
    rows, columns = grid.shape[:2]
    flat = grid.reshape(rows * columns, -1)
    q, k, _ = np.split(linear(attention.qkv, flat), 3, axis=-1)
    half = q.shape[-1] // 2
    sides = [
        (slice(0, half), tiles(rows, columns, rows, attention.stripe)),
        (slice(half, None), tiles(rows, columns, attention.stripe, columns)),
    ]
    maps = [
        full_matrix(len(flat), windows, lambda c, p=part: q[c][:, p], lambda c, p=part: k[c][:, p], attention.heads)
        for part, windows in sides
    ]
    return np.concatenate(maps), (rows, columns)


def group_block(block, x_HWC):
    """(h, G, N) of gathering and (h, N, G) of scattering."""
    x = double(x_HWC).reshape(-1, x_HWC.shape[-1])
    heads = block.gather.num_heads
    tokens = norm(block.gather.norm_query, double(block.group_tokens))
    values = norm(block.gather.norm_key, x)
    gathered = pairs(tokens, linear(block.gather.key, values), heads)
    groups = np.concatenate([m @ v for m, v in zip(gathered, heads_of(values, heads), strict=True)], -1)
    with torch.no_grad():
        mixed = double(block.mix.double().eval()(torch.from_numpy(groups)[None])[0])
    scatter = block.scatter
    q = linear(scatter.query, norm(scatter.norm_query, x))
    return gathered, pairs(q, linear(scatter.key, norm(scatter.norm_key, mixed)), heads)


def pairs(q, k, heads):
    parts = zip(heads_of(q, heads), heads_of(k, heads), strict=True)
    return np.stack([softmax(a @ b.T / np.sqrt(a.shape[-1])) for a, b in parts])


def recorded(model, photo, size, view):
    """The blocks of a view with a float64 copy of what reaches them, and the scene."""
    scene = Scene.of(model, photo, size)
    blocks = blocks_of(scene, view)
    with evaluating(model):
        inputs, maps = run_backbone(scene, blocks)
    return scene, [(block, *(tensor[0] for tensor in inputs[block])) for block in blocks], maps


def of_kind(model, kind):
    return [view for view in views(model) if view.kind == kind]


def row_of(weights, grid):
    """Weights of the real grid as a row over the padded one."""
    out = np.zeros(grid)
    out[: weights.shape[0], : weights.shape[1]] = weights
    return out.ravel()


def window_matrix(block, *inputs):
    return gcvit_block(block, *inputs) if len(inputs) == 2 else gpvit_block(block, *inputs)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("place", [{"pixel": PIXEL}, {"region": REGION}])
def test_local_attention(classifier, photo, size, place):
    for view in of_kind(classifier, "local")[::2]:
        scene, ((block, *inputs),), _ = recorded(classifier, photo, size, view)
        matrix, grid = window_matrix(block, *inputs)
        real = inputs[0].shape[:2]
        stride = 8 if view.stage is None else 4 * 2**view.stage
        weights = scene.start(stride, real, place.get("pixel"), place.get("region")).numpy()
        for head in (None, 0, view.heads - 1):
            found = explain(
                classifier, photo, "local", stage=view.stage, block=view.block, head=head, image_size=size, **place
            )
            wanted = row_of(weights, grid) @ (matrix.mean(0) if head is None else matrix[head])
            np.testing.assert_allclose(found.values, wanted.reshape(grid)[: real[0], : real[1]], **EQUAL)
            assert found.values.sum() + found.padding_share == pytest.approx(1, abs=2e-6)


@pytest.mark.parametrize("size", SIZES)
def test_global_attention(gcvit, photo, size):
    for view in of_kind(gcvit, "global"):
        _, ((block, x, query),), _ = recorded(gcvit, photo, size, view)
        matrix, grid = gcvit_block(block, x, query)
        side = block.attention.window
        windows = grid[0] * grid[1] // side**2
        for head in (None, view.heads - 1):
            given = {"stage": view.stage, "block": view.block, "head": head, "image_size": size}
            found = explain(gcvit, photo, "global", **given)
            mean = matrix.mean(0) if head is None else matrix[head]
            wanted = mean.sum(0) / side**2
            np.testing.assert_allclose(found.values, wanted.reshape(grid)[: x.shape[0], : x.shape[1]], **EQUAL)
            assert found.values.sum() / windows + found.padding_share == pytest.approx(1, abs=2e-6)
            corner = explain(gcvit, photo, "global", pixel=gcvit_corner(gcvit, photo, size), **given)
            first = np.concatenate([cells[:1] for cells in tiles(*grid, side, side)])
            np.testing.assert_allclose(
                corner.values, mean[first].sum(0).reshape(grid)[: x.shape[0], : x.shape[1]], **EQUAL
            )


def gcvit_corner(model, photo, size):
    """The first pixel that the model sees."""
    left, top, _, _ = Scene.of(model, photo, size).crop
    return int(np.ceil(left)), int(np.ceil(top))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("head", [None, 5])
def test_group_tokens(gpvit, photo, size, head):
    for view in of_kind(gpvit, "groups")[::3]:
        scene, ((block, x),), _ = recorded(gpvit, photo, size, view)
        gathered, scattered = (m.mean(0) if head is None else m[head] for m in group_block(copy.deepcopy(block), x))
        weights = scene.start(8, x.shape[:2], PIXEL, None).numpy().ravel()
        given = {"block": view.block, "head": head, "image_size": size}
        maps = {
            "gathers": explain(gpvit, photo, "groups", group=3, **given),
            "of the pixel": explain(gpvit, photo, "groups", pixel=PIXEL, **given),
            "taken": explain(gpvit, photo, "propagation", group=3, **given),
            "through": explain(gpvit, photo, "propagation", pixel=PIXEL, **given),
        }
        main = int((weights @ scattered).argmax())
        assert maps["of the pixel"].group == main
        wanted = {
            "gathers": gathered[3],
            "of the pixel": gathered[main],
            "taken": scattered[:, 3],
            "through": weights @ scattered @ gathered,
        }
        for name, found in maps.items():
            np.testing.assert_allclose(found.values.ravel(), wanted[name], **EQUAL, err_msg=name)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("place", [{}, {"pixel": PIXEL}])
def test_rollout_is_the_product_of_all_matrices(classifier, photo, size, place):
    for view in of_kind(classifier, "rollout"):
        scene, blocks, maps = recorded(classifier, photo, size, view)
        real = blocks[0][1].shape[:2]
        stride = 8 if view.stage is None else 4 * 2**view.stage
        start = np.full(real, 1 / (real[0] * real[1]))
        if view.stage is None:
            start = classifier.head.pool.attention_map(maps[-1])[0].mean(0).detach().numpy()
        if place:
            start = scene.start(stride, real, PIXEL, None).numpy()
        product = np.eye(start.size)
        for block, *inputs in blocks:
            product = (0.5 * np.eye(start.size) + 0.5 * real_matrix(block, inputs)) @ product
        found = explain(classifier, photo, "rollout", stage=view.stage, image_size=size, **place)
        np.testing.assert_allclose(found.values.ravel(), start.ravel() @ product, **EQUAL)


def real_matrix(block, inputs):
    """From every real token to every real one, in the mean over heads."""
    rows, columns = inputs[0].shape[:2]
    if hasattr(block, "gather"):
        gathered, scattered = group_block(copy.deepcopy(block), inputs[0])
        return scattered.mean(0) @ gathered.mean(0)
    matrix, grid = window_matrix(block, *inputs)
    real = np.arange(grid[0] * grid[1]).reshape(grid)[:rows, :columns].ravel()
    return matrix.mean(0)[np.ix_(real, real)]


def test_maps_are_the_same_however_few_windows_are_computed_at_a_time(classifier, photo, monkeypatch):
    whole = explain(classifier, photo, "local", region=REGION)
    monkeypatch.setattr("globalvit.explain.trace.MOST_NUMBERS", 1)
    np.testing.assert_allclose(explain(classifier, photo, "local", region=REGION).values, whole.values, **EQUAL)


def test_pooling_of_the_classifier(gpvit, photo):
    """The map of GPViT's group pool is what its vector is made with."""
    scene = Scene.of(gpvit, photo)
    gpvit.eval()
    x = gpvit.backbone(scene.images)[-1]
    pool = gpvit.head.pool
    shares = pool.attention_map(x).flatten(2)[0].detach().numpy()
    values = heads_of(x[0].flatten(1).T.detach().numpy(), len(shares))
    wanted = np.concatenate([share @ part for share, part in zip(shares, values, strict=True)])
    np.testing.assert_allclose(pool(x)[0].detach().numpy(), wanted, rtol=0, atol=1e-5)
