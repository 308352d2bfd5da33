"""Who imports whom. The table below is the package's layout: to allow a new import is to change it here."""

import ast
import re
import subprocess
import sys
import tomllib
from functools import cache
from pathlib import Path

import pytest

# A part of the package → the parts it may import, apart from itself and the foundations, which everybody may.
FOUNDATIONS = (
    "globalvit",
    "closest",
    "atomic",
    "locks",
    "printable",
    "regular",
    "hardware",
    "pytorch",
    "drawing",
    "console",
    "extensions",
)
MODELS = ("variants", "models", "ops", "layers")
NETWORKS = (*MODELS, "necks", "heads", "detectors")
TASKS = (*NETWORKS, "deploy", "data", "metrics", "tasks")
BUILD = (*TASKS, "weights", "build")
MAY_IMPORT = {
    "globalvit": ("api", "build", "ops", "train"),  # looked up lazily: see test_heavy_imports
    "closest": (),
    "atomic": (),
    "locks": (),
    "printable": (),
    "regular": (),
    "hardware": (),
    "drawing": (),
    "variants": (),
    "pytorch": (),
    "console": (),
    "extensions": ("variants",),  # inside a function: names that are taken
    "kernels": ("ops", "layers"),
    # The networks know nothing of the kernels, which register in `ops` when they are loaded.
    "ops": ("models",),
    "layers": ("models",),
    "models": MODELS,
    "deploy": (*MODELS, "kernels"),
    "necks": MODELS,
    "heads": MODELS,
    "detectors": NETWORKS,
    "data": (),
    "metrics": (),
    "tasks": TASKS,
    "weights": ("variants",),
    "build": BUILD,
    "keras": ("variants", "data", "weights"),
    "timm_plugin": BUILD,
    "train": BUILD,
    "explain": BUILD,
    "export": BUILD,
    "benchmark": (*BUILD, "train", "kernels"),
    "doctor": (*BUILD, "kernels"),
    "demo": (*BUILD, "train", "explain", "export"),
    "jobs": (*BUILD, "train", "explain", "export"),
    "api": (*BUILD, "train", "explain", "export", "jobs"),
    "cli": (*BUILD, "jobs", "api", "timm_plugin", "train", "keras", "explain", "export", "benchmark", "demo", "doctor"),
    "__main__": ("cli",),
}
# The same inside of `data`: a package of it → the others it may import.
DATA_MAY_IMPORT = {
    "common": ("storage",),  # looked up lazily, for images in databases
    "built_in": ("common", "detection"),
    "classification": ("common", "built_in", "storage"),
    "segmentation": ("common", "built_in", "storage", "detection"),
    "detection": ("common", "built_in", "storage"),
    "storage": ("common", "classification", "segmentation", "detection"),
    "split_folder": ("common", "classification", "segmentation", "detection"),
}
# Packages that users import from: their names stand in `__init__`.
PUBLIC_PACKAGES = ("keras", "explain", "export")
# A library → the only files that may know it.
KNOWN_BY = {
    "accelerate": {"train/engine.py", "train/trackers.py"},
    "jsonargparse": {"cli/flags.py"},
    "h5py": {"keras/files.py"},
    "gradio": {"demo/page.py", "demo/server.py"},
    "uvicorn": {"demo/server.py"},
    "fastapi": {"demo/server.py"},
    "lmdb": {"data/storage/lmdb.py"},
    "simplejpeg": {"data/storage/lmdb_decode.py"},
    "pycocotools": {"metrics/coco_ap.py", "data/detection/run_lengths.py"},
    "faster_coco_eval": {"metrics/coco_ap.py", "data/detection/run_lengths.py"},
}


def part_of(module):
    """The part of the package a module of it belongs to."""
    names = module.split(".")[1:]
    if names[:1] == ["models"] and names[1:2] in (["variants"], ["ops"], ["layers"]):
        return names[1]
    return names[0] if names else "globalvit"


@cache
def nodes(path):
    """Every node of a file's syntax tree."""
    return tuple(ast.walk(ast.parse(path.read_text())))


def imported(path):
    """Every module a file imports, at the top or inside a function; `from a import b` is `a.b` where b is a module."""
    for node in nodes(path):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}:{node.lineno} imports relatively; write the whole name"
            yield from (submodule_or_module(node.module, alias.name) for alias in node.names)


def submodule_or_module(module, name):
    """`module.name` if that is a module of ours, else `module`."""
    at = Path(__file__).parents[2] / "src" / Path(*module.split("."), name)
    return f"{module}.{name}" if at.is_dir() or at.with_suffix(".py").is_file() else module


def modules(package):
    """(module name, path) of every file of the package."""
    for path in sorted(package.rglob("*.py")):
        names = path.relative_to(package.parent).with_suffix("").parts
        yield ".".join(names[:-1] if names[-1] == "__init__" else names), path


def test_every_import_within_the_package_is_in_the_table(package):
    wrong = []
    for module, path in modules(package):
        part = part_of(module)
        allowed = {part, *FOUNDATIONS, *MAY_IMPORT[part]}
        for name in imported(path):
            if name.split(".")[0] == "globalvit" and part_of(name) not in allowed:
                wrong.append(f"{module} imports {name}, but {part} may import only {sorted(allowed)}")
    assert not wrong, "\n".join(wrong)


def test_imports_within_data_are_in_its_table(package):
    wrong = []
    for module, path in modules(package / "data"):
        part = module.split(".")[1] if "." in module else ""
        for name in imported(path) if part else ():
            other = name.removeprefix("globalvit.data.").split(".")[0]
            if name.startswith("globalvit.data.") and other not in {part, *DATA_MAY_IMPORT[part]}:
                wrong.append(f"{module} imports {name}, but {part} may import only {DATA_MAY_IMPORT[part]}")
    assert not wrong, "\n".join(wrong)


def test_no_files_of_data_import_each_other_in_a_circle(package):
    imports = {
        f"globalvit.{module}": {name for name in imported(path) if name.startswith("globalvit.data.")}
        for module, path in modules(package / "data")
    }
    # Take away, again and again, the files that import none of the others: a circle is what is left.
    while leaves := {module for module, names in imports.items() if not names & imports.keys()}:
        imports = {module: names for module, names in imports.items() if module not in leaves}
    assert not imports


def test_the_table_lists_only_parts_that_the_rules_know(package):
    parts = {part_of(module) for module, _ in modules(package)}
    assert parts <= set(MAY_IMPORT)


@pytest.mark.parametrize("library", KNOWN_BY)
def test_a_library_is_known_by_its_files_only(package, library):
    users = {
        str(path.relative_to(package))
        for _, path in modules(package)
        if any(name.split(".")[0] == library for name in imported(path))
    }
    assert users <= KNOWN_BY[library]


def test_libraries_are_declared(package, root):
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    declared = [
        *project["dependencies"],
        *(one for extra in project["optional-dependencies"].values() for one in extra),
    ]
    modules_of = {"huggingface-hub": "huggingface_hub", "pillow": "PIL", "pyyaml": "yaml"}
    names = {one.split(">")[0].split("[")[0].strip() for one in declared}
    known = {modules_of.get(name, name.replace("-", "_")) for name in names} | {"globalvit", *sys.stdlib_module_names}
    used = {name.split(".")[0] for _, path in modules(package) for name in imported(path)}
    assert used <= known


def test_packages_are_empty_but_for_their_docstring(package):
    for path in package.rglob("*/__init__.py"):
        if path.parent.name in PUBLIC_PACKAGES:
            continue
        body = ast.parse(path.read_text()).body
        assert len(body) == 1, path
        assert isinstance(body[0], ast.Expr), path


def test_only_the_command_line_prints(package):
    for module, path in modules(package):
        calls = [node for node in nodes(path) if isinstance(node, ast.Call)]
        printing = [call.lineno for call in calls if isinstance(call.func, ast.Name) and call.func.id == "print"]
        assert not printing or part_of(module) == "cli", f"{path.name}:{printing} prints; use the module's logger"


def test_scripts_import_what_exists(package, root):
    for script in sorted((root / "benchmarks").glob("*.py")):
        for node in nodes(script):
            if not isinstance(node, ast.ImportFrom) or not (node.module or "").startswith("globalvit"):
                continue
            place = package.parent.joinpath(*node.module.split("."))
            path = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
            assert path.is_file(), f"{script.name} imports {node.module}"
            text = path.read_text()
            for one in node.names:
                is_module = (place / one.name).is_dir() or (place / f"{one.name}.py").is_file()
                assert is_module or re.search(rf"\b{one.name}\b", text), f"{script.name} imports {one.name}"


WITHOUT_EXTRAS = """
import sys
for name in ("lmdb", "keras", "gradio"):
    sys.modules[name] = None  # importing it fails
import globalvit.cli.train, globalvit.cli.validate, globalvit.cli.predict, globalvit.cli.explain, globalvit.cli.data
import globalvit.train.session, globalvit.train.evaluate, globalvit.data.storage.fingerprint, globalvit.doctor
"""


def test_training_and_prediction_need_no_extras():
    command = [sys.executable, "-c", WITHOUT_EXTRAS]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
