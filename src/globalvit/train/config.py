"""From a recipe, YAML files and flags to one checked `TrainConfig`. No torch here.

Later layers win: defaults < the recipe a file names as its `base` < the file < flags.
"""

import logging
import os
import reprlib
from collections.abc import Iterable, Mapping
from dataclasses import fields, replace
from datetime import date
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml

from globalvit.closest import USE_DDP, suggest
from globalvit.models.variants import ModelSpec, unalias
from globalvit.train.fields import AMP, TrainConfig
from globalvit.train.foreign import FOREIGN_KEYS, RENAMED, SHARDING, changes_training
from globalvit.weights.catalog import FIRST

logger = logging.getLogger(__name__)

RECIPES = Path(__file__).parent.parent / "recipes"
DEFAULT_RECIPES = {"classify": "finetune", "segment": "finetune_segmentation", "detect": "finetune_detection"}
SCRATCH_RECIPES = {"classify": "scratch", "segment": "scratch_segmentation", "detect": "scratch_detection"}
# Reading YAML takes a second per megabyte; a config has a few kilobytes.
MOST_BYTES = 2**20
# --resume auto: the run of --tag where it has saved something, else a new one.
AUTO = "auto"
COMMAND_LINE = "the command line"
Layer = dict[str, Any]

# What a resumed run may change: where things lie, what is written, and how the same steps are computed.
_FREE_ON_RESUME = """
    data_dir workers output tag resume val_interval checkpoint_every checkpoint_interval checkpoint_hist log_interval
    batch_size grad_accum_steps auto_batch small_set kernels torch_operations torchcompile channels_last
    grad_checkpointing device weights log
    early_stop accept_changed_data lock_timeout exit_0_on_signal dist_timeout
"""
FREE_ON_RESUME = frozenset(_FREE_ON_RESUME.split())
BATCH_SETTINGS = frozenset(["batch_size", "global_batch", "grad_accum_steps", "auto_batch"])


def available_recipes() -> list[str]:
    """Names of the shipped recipes."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def load_config(
    source: str | Path | None = None, flags: Mapping[str, Any] | None = None, origin: str = COMMAND_LINE
) -> TrainConfig:
    """Read a recipe or YAML file and lay `flags` over it.

    A layer that names `lr` without `global_batch` means that lr as it stands: it is then not scaled with the batch. A
    layer that changes `epochs` but names no warm-up or cooldown shortens or stretches them in proportion. A layer that
    names a batch turns `small_set` off.

    Args:
        source: name of a shipped recipe, or path of a YAML file; None is the default of the model's kind of
            task: training from scratch where the flags name no weights on purpose, fine-tuning otherwise.
        flags: what the command line named, field → value.
        origin: where the flags are from, for error messages.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no such recipe, a key that is not known, a value of the wrong type or out of its range.
    """
    flags = dict(flags or {})
    layers = [*_read_chain(str(source or _recipe_for(flags))), (origin, flags)]
    values: Layer = {}
    for origin, layer in layers:
        values = _lay_over(values, _typed(layer, origin), origin)
    values["model"] = unalias(values.get("model", TrainConfig.model))
    return TrainConfig(**values)


def read_run_config(run: Path, flags: Mapping[str, Any] | None = None) -> TrainConfig:
    """The config a run folder keeps, with `flags` over it."""
    return load_config(run / "config.yaml", flags)


def to_yaml(config: TrainConfig) -> str:
    """The config as a YAML text that `load_config` reads back to an equal one."""
    return yaml.safe_dump(config.to_dict(), sort_keys=False)


def default_recipe(model: str | None, *, is_fresh: bool = False) -> str:
    """The recipe that is meant where none is named: fine-tuning, or training fresh weights from scratch."""
    return (SCRATCH_RECIPES if is_fresh else DEFAULT_RECIPES)[ModelSpec(model=model or TrainConfig.model).kind]


def recipe_name(source: str | Path | None, config: TrainConfig) -> str:
    """The word that names runs of a recipe or YAML file, or of the default recipe of a config."""
    return Path(source or default_recipe(config.model, is_fresh=config.weights is None)).stem


def scale_lr(config: TrainConfig, processes: int) -> TrainConfig:
    """Fit the learning rates to the number of images a step really has; logs one line when that changes them.

    Args:
        config: with `global_batch` the number of images its `lr` is meant for, or None to leave lr alone.
        processes: training processes, each with `batch_size` images a pass.
    """
    images = config.batch_size * config.grad_accum_steps * processes
    factor = images / (config.global_batch or images)
    if factor == 1.0:
        return replace(config, global_batch=images)
    lr = config.lr * factor
    logger.info(
        "lr %g is for a global batch of %d, here it is %d: lr scaled to %g, min_lr and warmup_lr alike; "
        "--lr switches that off",
        *(config.lr, config.global_batch, images, lr),
    )
    scaled = {"lr": lr, "min_lr": config.min_lr * factor, "warmup_lr": config.warmup_lr * factor}
    return replace(config, global_batch=images, **scaled)


def check_resumable(config: TrainConfig, saved: TrainConfig) -> None:
    """Refuse to go on with settings that make another run of it.

    Raises:
        ValueError: settings differ that decide about the result; the text names each with both values.
    """
    names = [item.name for item in fields(TrainConfig) if item.name not in FREE_ON_RESUME]
    pairs = [(name, getattr(saved, name), getattr(config, name)) for name in names]
    differing = [f"{name} {before}, now {now}" for name, before, now in pairs if before != now]
    if differing:
        raise ValueError(
            f"cannot resume with other settings ({'; '.join(differing)}); "
            "leave those flags out, or start a new run with --weights from this checkpoint"
        )


def _recipe_for(flags: Mapping[str, Any]) -> str:
    """The default recipe of a command; logs what was chosen and why."""
    is_fresh = "weights" in flags and flags["weights"] in (None, "", "none")
    name = default_recipe(flags.get("model"), is_fresh=is_fresh)
    if is_fresh:
        logger.info("recipe %s: --weights none starts from fresh weights, so every layer trains at the full rate", name)
        other = default_recipe(flags.get("model"))
        logger.info("--config %s or a file of your own chooses another recipe; flags override its settings", other)
    return name


def _read_chain(source: str) -> list[tuple[str, Layer]]:
    """The layers of `source`, the deepest base first, each with the name of where it stands."""
    chain: list[tuple[str, Layer]] = []
    seen: list[Path] = []
    folder = Path()
    while source:
        path = _find(source, folder)
        if path in seen:
            raise ValueError(f"{path} names itself as its base, by way of {' and '.join(map(str, seen))}")
        seen.append(path)
        layer = _read_yaml(path)
        source, folder = str(layer.pop("base", None) or ""), path.parent
        chain.insert(0, (str(path), layer))
    return chain


def _find(source: str, folder: Path) -> Path:
    """The file of a recipe's name or of a path, which is relative to `folder` where it is not to be found as it is."""
    if Path(source).suffix not in (".yaml", ".yml") and source not in available_recipes():
        hint = suggest(source, available_recipes()) or f" Shipped: {', '.join(available_recipes())}."
        raise ValueError(f"no recipe is named {source!r}.{hint} Files end in .yaml or .yml")
    candidates = [Path(source), folder / source, RECIPES / f"{source}.yaml"]
    for path in candidates:
        if path.is_file() and path.suffix in (".yaml", ".yml"):
            return path
    raise FileNotFoundError(f"config file {source} does not exist; shipped recipes: {', '.join(available_recipes())}")


def _read_yaml(path: Path) -> Layer:
    size = path.stat().st_size
    if size > MOST_BYTES:
        raise ValueError(f"{path} is not a config file: expected at most {MOST_BYTES} bytes, got {size}")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
    except RecursionError as error:
        raise ValueError(f"{path} is not readable as YAML: it is nested too deeply") from error
    # Dates and numbers that are none raise ValueErrors of their own.
    except (yaml.YAMLError, ValueError) as error:
        raise ValueError(f"{path} is not readable as YAML: {' '.join(str(error).split())}") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold `key: value` lines, not a {type(content).__name__}")
    return {str(key).replace("-", "_"): value for key, value in content.items()}


def _typed(layer: Layer, origin: str) -> Layer:
    """The layer's known keys with values of their fields' types; foreign keys are named and left out."""
    hints = get_type_hints(TrainConfig)
    layer = {RENAMED.get(key, key): value for key, value in sorted(layer.items(), key=lambda item: item[0] in hints)}
    if layer.pop("pretrained", False):
        layer.setdefault("weights", FIRST)
    name, on, off = AMP
    if name in layer:
        layer.setdefault("precision", on if convert(name, layer.pop(name), bool, origin) else off)
    # Runs of earlier versions have it in their files.
    if convert(SHARDING, layer.pop(SHARDING, False), bool, origin):
        raise ValueError(f"{SHARDING}=true in {origin} is not offered: {USE_DDP}")
    _refuse(layer, hints, origin)
    foreign = {key: value for key, value in layer.items() if key in FOREIGN_KEYS and key not in hints}
    ignored = [f"{key}={value if isinstance(value, str) else _short(value)}" for key, value in foreign.items()]
    if ignored:
        logger.warning("ignored in %s, since they have no effect here: %s", origin, ", ".join(ignored))
    typed = {key: convert(key, value, hints[key], origin) for key, value in layer.items() if key in hints}
    # In timm's files an empty value stands for the default.
    return {key: value for key, value in typed.items() if value is not None or _allows_none(hints[key])}


def _refuse(layer: Layer, hints: Layer, origin: str) -> None:
    for key, value in layer.items():
        if key not in hints and key not in FOREIGN_KEYS:
            raise ValueError(f"unknown key {key!r} in {origin}.{suggest(key, [*hints, 'base'])}")
        if key not in hints and changes_training(key, value, layer):
            raise ValueError(
                f"{key}={_short(value)} in {origin} is not offered and would change the training; take it out"
            )


def _lay_over(below: Layer, above: Layer, origin: str) -> Layer:
    values = {**below, **above}
    if "lr" in above and "global_batch" not in above:
        values["global_batch"] = None
    if BATCH_SETTINGS & above.keys() and "small_set" not in above:
        # An explicit batch size is kept.
        values["small_set"] = False
    if "epochs" in above and "steps" not in above and below.get("steps"):
        # Whoever names epochs wants no run that is counted in steps.
        values |= {key: None for key in ("steps", "val_steps", "warmup_steps") if key not in above}
    _stretch_steps(below, above, values, origin)
    before, now = below.get("epochs", TrainConfig.epochs), values.get("epochs", TrainConfig.epochs)
    if before != now:
        _stretch(
            values, [key for key in ("warmup_epochs", "cooldown_epochs") if key not in above], now / before, origin
        )
    return values


def _stretch(values: Layer, keys: Iterable[str], factor: float, origin: str) -> None:
    """Multiply epochs-long phases that `origin` did not name itself."""
    for key in keys:
        before = values.get(key, getattr(TrainConfig, key))
        after = round(before * factor) if key == "cooldown_epochs" else before * factor
        if after != before:
            values[key] = after
            logger.info("epochs changed by %s: %s %g becomes %g in proportion", origin, key, before, after)


def _stretch_steps(below: Layer, above: Layer, values: Layer, origin: str) -> None:
    before, now, warmup = below.get("steps"), values.get("steps"), below.get("warmup_steps")
    if before and now and warmup and before != now and "warmup_steps" not in above:
        values["warmup_steps"] = warmup * now // before
        logger.info(
            "steps changed by %s: warmup_steps %d becomes %d in proportion", origin, warmup, values["warmup_steps"]
        )


def _short(value: Any) -> str:
    # A text of YAML can name one list in another again and again, which written out would fill the memory.
    return f"{value!r:.200}" if isinstance(value, str | int | float | bool) else " ".join(reprlib.repr(value).split())


def _allows_none(hint: Any) -> bool:
    return NoneType in get_args(hint)


def convert(key: str, value: Any, hint: Any, origin: str) -> Any:
    """Read a value as the type of its setting.

    Raises:
        ValueError: it is of another type; the text names the setting and `origin`.
    """
    if getattr(value, "ndim", None) == 0:
        # A scalar of NumPy or PyTorch.
        value = value.item()
    if value is None or (value in ("", "none") and _allows_none(hint)):
        return None
    parts = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    for part in parts:
        try:
            return _as_type(value, part)
        except (TypeError, ValueError, OverflowError):
            continue
    expected = " or ".join(_in_words(part) for part in parts if part is not NoneType)
    raise ValueError(f"{key}={_short(value)} in {origin} must be {expected}")


def _as_type(value: Any, part: Any) -> Any:
    """Read `value` as one type; YAML 1.1 gives `1e-3` as text, so texts are read as numbers.

    Raises:
        TypeError, ValueError: it is of another type.
    """
    if get_origin(part) is Literal:
        return get_args(part)[get_args(part).index(value)]
    if get_origin(part) is tuple:
        return _as_tuple(value, get_args(part))
    if part in (str, Path) and isinstance(value, (str, os.PathLike)):
        return part(os.fspath(value))
    if part is str and isinstance(value, (bool, int, float, date)):
        return str(value)
    if part is bool and isinstance(value, bool):
        return value
    if part in (int, float) and isinstance(value, (int, float, str)) and not isinstance(value, bool):
        number = float(value)
        if part is float or number == int(number):
            return part(number)
    raise TypeError


def _as_tuple(value: Any, parts: tuple[Any, ...]) -> tuple[Any, ...]:
    if not isinstance(value, (list, tuple)):
        raise TypeError
    wanted = parts[:1] * len(value) if Ellipsis in parts else parts
    return tuple(_as_type(item, part) for item, part in zip(value, wanted, strict=True))


def _in_words(part: Any) -> str:
    if get_origin(part) is Literal:
        return " or ".join(map(repr, get_args(part)))
    if get_origin(part) is tuple:
        return f"a list of {'' if Ellipsis in get_args(part) else f'{len(get_args(part))} '}numbers"
    return {bool: "true or false", int: "a whole number", float: "a number", str: "text", Path: "a path"}[part]


def from_dict(values: Layer, origin: str) -> TrainConfig:
    """The inverse of `TrainConfig.to_dict`; `origin` names the file in error messages.

    Raises:
        ValueError: a key is not known, or a value is of the wrong type or out of its range.
    """
    return TrainConfig(**_typed({key: value for key, value in values.items() if key != SHARDING}, origin))


def share_batch(config: TrainConfig, saved: TrainConfig, processes: int) -> TrainConfig:
    """Spread the images of a resumed run's steps over another number of processes.

    Raises:
        ValueError: they cannot be spread evenly.
    """
    images = saved.global_batch
    if images is None or config.batch_size != saved.batch_size or config.grad_accum_steps != saved.grad_accum_steps:
        return config
    parts = processes * config.grad_accum_steps
    if images % parts:
        raise ValueError(
            f"the run has {images} images a step, which {processes} processes × {config.grad_accum_steps} passes "
            f"cannot share; resume on a number of processes that divides them, or give --batch-size"
        )
    return replace(config, batch_size=images // parts)
