"""Compiles the C kernels into wheels for Linux, once for every instruction set that the local compiler knows.

Also makes the package index's page from README.md.
"""

import importlib.util
import json
import os
import platform
import re
import sys
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface
from hatchling.metadata.plugin.interface import MetadataHookInterface

PACKAGE = Path("src", "globalvit", "kernels", "cpu")
INSTALLED = "globalvit/kernels/cpu/libraries"
# A library that needs a newer C library than this runs only on systems like the one that built it.
PORTABLE_GLIBC = (2, 28)


class ReadmeHook(MetadataHookInterface):
    """Makes README.md's relative links absolute, since the package index has none of the files they lead to."""

    PLUGIN_NAME = "custom"

    def update(self, metadata: dict[str, Any]) -> None:
        """Set the readme."""
        text = Path(self.root, "README.md").read_text(encoding="utf-8")
        text = absolute_links(text, metadata["urls"]["Repository"])
        metadata["readme"] = {"content-type": "text/markdown", "text": text}


class KernelsHook(BuildHookInterface):
    """Adds compiled kernels to wheels.

    Editable installs compile them at first use instead, and a machine without a compiler builds a wheel without them.
    """

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile, and name the platform that the wheel is for."""
        if version == "editable" or not sys.platform.startswith("linux"):
            return
        self.folder = tempfile.TemporaryDirectory()
        libraries = compile_all(_variants(Path(self.root)), Path(self.folder.name), self.app.display_warning)
        if not libraries:
            return
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{platform_tag(libraries)}"
        for library in libraries:
            for path in (library, library.with_suffix(".json")):
                build_data["force_include"][str(path)] = f"{INSTALLED}/{path.name}"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Remove the compiled libraries; the wheel has its copy."""
        if hasattr(self, "folder"):
            self.folder.cleanup()


def absolute_links(text: str, repository: str) -> str:
    """Return Markdown whose links and images within the repository are addresses of its main branch."""
    page = re.compile(r"(?P<image>!?)\[(?P<label>[^\]]*)\]\((?!https?:|#)(?P<path>[^)\s]+)\)")
    return page.sub(
        lambda m: f"{m['image']}[{m['label']}]({repository}/{'raw' if m['image'] else 'blob'}/main/{m['path']})", text
    )


def compile_all(variants: ModuleType, folder: Path, warn: Any) -> list[Path]:
    """Compile the libraries of this architecture, with a record beside each; leave out what cannot be compiled."""
    libraries = []
    for variant in variants.variants_of(platform.machine()):
        library = folder / f"{variant.name}.so"
        try:
            compiler = variants.find_compiler(os.environ, may_be_clang=False)
            variants.compile_variant(variant, compiler, library, ("-s",))
        except OSError as error:
            warn(f"the wheel has no C kernels for {variant.name}: {error}")
            continue
        library.with_suffix(".json").write_text(json.dumps(variants.record(library)) + "\n")
        libraries.append(library)
    return libraries


def platform_tag(libraries: list[Path]) -> str:
    """Return the most general platform that has every symbol of the C library which these libraries need."""
    texts = [library.read_bytes() for library in libraries]
    needed = [tuple(map(int, found)) for text in texts for found in re.findall(rb"GLIBC_(\d+)\.(\d+)", text)]
    system = "manylinux_2_28" if max(needed, default=(0, 0)) <= PORTABLE_GLIBC else "linux"
    return f"{system}_{platform.machine()}"


def _variants(root: Path) -> ModuleType:
    """Import the module that compiles, without the package, whose dependencies are not installed here."""
    spec = importlib.util.spec_from_file_location("globalvit_variants", root / PACKAGE / "variants.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look their module up.
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module
