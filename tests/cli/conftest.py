"""A small run folder, as training leaves one, for the commands that use a model."""

import json

import pytest

CLASSES = tuple("0123456789")


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory):
    """A run on the built-in digits whose classifier can tell some of them: its head is fitted in closed form."""
    import torch

    from globalvit.build import create_model
    from globalvit.data.classification.transforms import EvalTransform
    from globalvit.train.config import to_yaml
    from globalvit.train.fields import TrainConfig
    from globalvit.weights.load import save_weights

    folder = tmp_path_factory.mktemp("runs") / "digits-1"
    checkpoint = folder / "checkpoints" / "step-3"
    checkpoint.mkdir(parents=True)
    (folder / "checkpoints" / "best").write_text("step-3\n")
    transform = EvalTransform(image_size=32, crop_ratio=1.0, interpolation="bilinear")
    torch.manual_seed(0)
    task = create_model("gcvit_xxtiny", classes=CLASSES, image_size=32, preprocessing=transform)
    fit_head(task)
    save_weights(checkpoint / "model.safetensors", task, task.spec, CLASSES, transform)
    config = TrainConfig(data_dir="digits", batch_size=24, precision="fp32", workers=0)
    (folder / "config.yaml").write_text(to_yaml(config))
    (folder / "classes.json").write_text(json.dumps(CLASSES))
    return folder


def fit_head(task, samples=600):
    """Solve for the last layer on features of some training digits; the random backbone stays as it is."""
    import torch

    from globalvit.data.classification.dataset import open_split

    source = open_split("digits", "train")
    images = torch.stack([task.preprocessing(source.read(i)) for i in range(samples)])
    targets = torch.nn.functional.one_hot(torch.tensor([source.label(i) for i in range(samples)]), 10).float()
    head = task.head.linear
    with torch.no_grad():
        maps_BCHW = task.eval().backbone(images)[-1]
        known = torch.cat([maps_BCHW.mean((2, 3)), torch.ones(samples, 1)], 1).double()
        ridge = 1e-3 * torch.eye(known.shape[1], dtype=torch.float64)
        solved = torch.linalg.solve(known.T @ known + ridge, known.T @ (10 * targets.double() - 5)).float()
        head.weight.copy_(solved[:-1].T)
        head.bias.copy_(solved[-1])
