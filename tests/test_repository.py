"""The files around the code: workflows, forms, hooks and the citation can be read and agree with the project."""

import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from floors import LEFT_OUT, floors

from vovnet.errors import SOURCE, install_advice

ROOT = Path(__file__).resolve().parent.parent
GITHUB = ROOT / ".github"
WORKFLOWS = sorted((GITHUB / "workflows").glob("*.yml"))
FORMS = [path for path in sorted((GITHUB / "ISSUE_TEMPLATE").glob("*.yml")) if path.name != "config.yml"]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def read(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def steps(workflow: Path) -> list[dict[str, Any]]:
    return [step for job in read(workflow)["jobs"].values() for step in job.get("steps", [])]


def test_a_workflow_runs_what_every_commit_must_pass() -> None:
    assert ".ci/run" in [step.get("run") for step in steps(GITHUB / "workflows" / "ci.yml")]
    assert read(GITHUB / "workflows" / "release.yml")["jobs"]["ci"]["uses"] == "./.github/workflows/ci.yml"


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.name)
def test_workflows_have_few_rights_and_pinned_actions(workflow: Path) -> None:
    assert read(workflow)["permissions"] == {"contents": "read"}
    for step in steps(workflow):
        if "uses" in step:
            assert re.fullmatch(r"[\w-]+/[\w-]+@(release/)?v\d+", step["uses"])


def test_publishing_needs_a_tag_and_no_secret() -> None:
    path = GITHUB / "workflows" / "release.yml"
    workflow = read(path)
    assert workflow[True] == {"push": {"tags": ["v*"]}}  # YAML 1.1 reads the key `on` as true
    assert workflow["jobs"]["publish"]["permissions"] == {"id-token": "write"}
    assert workflow["jobs"]["publish"]["needs"] == "build"
    assert "secrets." not in path.read_text(encoding="utf-8")


def test_the_site_is_published_by_a_job_that_builds_nothing() -> None:
    jobs = read(GITHUB / "workflows" / "docs.yml")["jobs"]
    assert "make docs" in [step.get("run") for step in jobs["build"]["steps"]]
    assert "permissions" not in jobs["build"]
    assert jobs["deploy"]["permissions"] == {"pages": "write", "id-token": "write"}
    assert [step["uses"].partition("@")[0] for step in jobs["deploy"]["steps"]] == ["actions/deploy-pages"]


@pytest.mark.parametrize("form", FORMS, ids=lambda path: path.name)
def test_issue_forms_ask_for_the_environment(form: Path) -> None:
    content = read(form)
    assert {"name", "description", "body"} <= set(content)
    assert any("`vovnet env`" in field["attributes"]["label"] for field in content["body"])
    ids = [field["id"] for field in content["body"]]
    assert len(ids) == len(set(ids))


def test_hooks_run_ruff_and_mypy() -> None:
    hooks = [hook for repository in read(ROOT / ".pre-commit-config.yaml")["repos"] for hook in repository["hooks"]]
    assert [hook["id"] for hook in hooks] == ["ruff", "ruff-format", "mypy"]


def test_the_citation_is_of_this_version() -> None:
    citation = read(ROOT / "CITATION.cff")
    assert citation["cff-version"] == "1.2.0"
    assert (citation["title"], citation["version"]) == (PROJECT["name"], PROJECT["version"])
    assert citation["license"] == PROJECT["license"]
    assert citation["repository-code"] == PROJECT["urls"]["Source"]
    assert all({"type", "title", "authors"} <= set(paper) for paper in citation["references"])


def test_blame_skips_commits_that_exist() -> None:
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("not a clone")
    lines = (ROOT / ".git-blame-ignore-revs").read_text(encoding="utf-8").splitlines()
    commits = [line for line in lines if line and not line.startswith("#")]
    assert commits
    for commit in commits:
        assert re.fullmatch(r"[0-9a-f]{40}", commit)
        found = subprocess.run(["git", "cat-file", "-t", commit], cwd=ROOT, capture_output=True, text=True, check=False)
        assert found.stdout.strip() in ("commit", ""), found  # absent from a shallow clone


BY_NAME = re.compile(r"pip install (-\S+ )*['\"]?vovnet\b(?!\[\w+\] @|\[\{\w+\}\] @| @)")


def test_no_advice_names_a_package_that_no_index_has() -> None:
    assert PROJECT["urls"]["Source"] == SOURCE
    assert all(BY_NAME.search(f"try pip install {name}") for name in ("vovnet", "'vovnet[detection]'", "-U vovnet"))
    assert not BY_NAME.search(install_advice("detection"))
    pages = [path for pattern in ("*.py", "*.md", "*.yaml") for path in ROOT.rglob(pattern)]
    ours = [path for path in pages if not {"tests", "runs", "build"} & set(path.relative_to(ROOT).parts)]
    ours = [path for path in ours if not any(part.startswith(".venv") for part in path.relative_to(ROOT).parts)]
    assert ours
    assert [path.name for path in ours if BY_NAME.search(path.read_text(encoding="utf-8"))] == []


def test_every_requirement_has_a_floor_that_can_be_installed_exactly() -> None:
    known = floors()
    assert {"torch", "torchvision", "timm", "numpy", "pydantic", "pytest"} <= known.keys()
    assert {"onnx", "onnxruntime", "onnxscript", "openvino", "nncf"} <= known.keys()  # of extras that extras name
    assert known.keys() & LEFT_OUT == set()
    requirements = [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["detection"]]
    assert {re.split(r"\W*>=", requirement)[0] for requirement in requirements} <= known.keys()
