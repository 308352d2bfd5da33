"""Release files: workflows run what .ci/run runs, one version, one address of the repository."""

import importlib.util
import re
import tomllib

import pytest
import yaml

import globalvit

# What prepares a job, and what only a release does.
SETUP = re.compile(r"(?:uv )?pip install |cibuildwheel |python -m build$|twine check |globalvit doctor$")


def commands_of(workflow):
    """Every command of a workflow."""
    for job in yaml.safe_load(workflow.read_text())["jobs"].values():
        yield from (step["run"] for step in job["steps"] if "run" in step)


@pytest.fixture
def project(root):
    """The table `project` of pyproject.toml."""
    return tomllib.loads((root / "pyproject.toml").read_text())["project"]


def test_workflows_run_the_commands_of_ci(root):
    known = (root / ".ci/run").read_text() + (root / "README.md").read_text() + (root / "CONTRIBUTING.md").read_text()
    known = re.sub(r'"\$workspace/lint/bin/([\w-]+)"|"\$python" -m (pytest)', r"\1\2", known)
    workflows = sorted((root / ".github/workflows").glob("*.yml"))
    assert [path.stem for path in workflows] == ["ci", "docs", "weekly", "wheels"]
    for path in workflows:
        for command in commands_of(path):
            assert SETUP.match(command) or command.startswith(".ci/") or command in known, f"{path.name}: {command}"


def test_scripts_that_workflows_run_exist(root):
    for command in commands_of(root / ".github/workflows/weekly.yml"):
        if command.startswith(".ci/"):
            assert (root / command).stat().st_mode & 0o111


def test_tests_run_on_every_python_that_is_declared(root, project):
    matrix = yaml.safe_load((root / ".github/workflows/ci.yml").read_text())["jobs"]["tests"]["strategy"]["matrix"]
    declared = [name.rpartition(" ")[2] for name in project["classifiers"] if re.search(r"Python :: 3\.\d+", name)]
    assert matrix["python"] == declared
    assert matrix["resolution"] == ["lowest-direct", "highest"]


def test_the_version_is_written_once(root, project):
    assert "version" in project["dynamic"]
    listed = [root / "pyproject.toml", root / "CITATION.cff", root / "docs/conf.py"]
    assert not [path for path in listed if globalvit.__version__ in path.read_text()]


def test_the_repository_s_address_is_one(root, project):
    repository = project["urls"]["Repository"]
    assert yaml.safe_load((root / "CITATION.cff").read_text())["repository-code"] == repository
    assert all(address.startswith(repository) for name, address in project["urls"].items() if name != "Documentation")


def test_the_index_s_page_has_no_relative_links(root):
    spec = importlib.util.spec_from_file_location("hatch_build_of_release", root / "hatch_build.py")
    hook = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hook)
    short = hook.absolute_links("[a](docs/a.md#b) ![c](d.jpg) [e](https://f.org) [g](#h)", "https://r")
    assert short == "[a](https://r/blob/main/docs/a.md#b) ![c](https://r/raw/main/d.jpg) [e](https://f.org) [g](#h)"
    page = hook.absolute_links((root / "README.md").read_text(), "https://r")
    assert not re.findall(r"\]\((?!https?:|#)", page)
