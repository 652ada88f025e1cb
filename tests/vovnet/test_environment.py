"""The page for bug reports: complete, free of secrets, and alive when things are broken."""

import builtins
import os
import shutil
import subprocess
from importlib import metadata

import pytest
import torch

from vovnet import environment
from vovnet.environment import checkout_commit, describe_machine, environment_report
from vovnet.errors import install_advice


def test_names_versions_devices_and_compilers():
    text = environment_report()
    assert metadata.version("torch") in text
    assert metadata.version("timm") in text
    assert torch.backends.cpu.get_cpu_capability() in text
    for section in (
        "versions",
        "machine",
        "torch",
        "compilers",
        "operators",
        "folders",
        "environment variables",
        "missing",
    ):
        assert f"[{section}]" in text
    assert "failed" not in text
    assert len(text.splitlines()) < 70


def test_secrets_are_not_shown(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_verysecret")
    monkeypatch.setenv("HF_ENDPOINT", "https://me:pass@mirror.example")
    text = environment_report()
    assert "HF_TOKEN" in text
    assert "verysecret" not in text
    assert "me:pass" not in text
    assert "mirror.example" in text


def test_missing_packages_are_listed_with_the_mend(monkeypatch):
    version = metadata.version

    def without(name):
        if name in ("pycocotools", "vovnet"):
            raise metadata.PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(metadata, "version", without)
    text = environment_report()
    assert install_advice("detection") in text
    assert "not installed (running from" in text


def test_a_torch_that_cannot_be_imported(monkeypatch):
    real = builtins.__import__

    def broken(name, *rest):
        if name == "torch":
            raise ImportError("libcudart.so.13: cannot open\nshared object")
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", broken)
    text = environment_report()
    assert "ImportError: libcudart.so.13: cannot open shared object" in text
    assert "[missing]" in text


def test_no_compiler(monkeypatch):
    monkeypatch.setattr(environment.shutil, "which", lambda name: None)
    assert "C++ compiler" in environment_report().partition("[missing]")[2]


def test_the_facts_that_benchmarks_record():
    facts = describe_machine("torch", "no-such-package")
    assert facts["torch"] == metadata.version("torch")
    assert facts["no-such-package"] == "not installed"
    assert facts["processor"]
    assert 1 <= facts["usable cores"] <= os.cpu_count()


def test_installed_kernels_need_no_compiler(monkeypatch):
    from vovnet.ops.build import prebuilt

    monkeypatch.setattr(environment.shutil, "which", lambda name: None)
    monkeypatch.setattr(prebuilt, "find_prebuilt", lambda library: object())
    assert "C++ compiler" not in environment_report().partition("[missing]")[2]


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_the_commit_of_a_checkout(tmp_path, monkeypatch):
    def git(*arguments):
        identity = ("-c", "user.name=a", "-c", "user.email=a@b")
        done = subprocess.run(["git", *identity, *arguments], cwd=tmp_path, check=True, capture_output=True, text=True)
        return done.stdout.strip()

    assert checkout_commit(tmp_path) is None
    git("init", "-q")
    assert checkout_commit(tmp_path) is None, "no commit yet"
    (tmp_path / "a.txt").write_text("a")
    git("add", "a.txt")
    git("commit", "-q", "-m", "first")
    commit = git("rev-parse", "HEAD")
    assert checkout_commit(tmp_path) == {"commit": commit, "changed": False}
    (tmp_path / "b.txt").write_text("not tracked")
    assert checkout_commit(tmp_path) == {"commit": commit, "changed": False}
    (tmp_path / "a.txt").write_text("other")
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "elsewhere"))
    assert checkout_commit(tmp_path) == {"commit": commit, "changed": True}
    (tmp_path / "inner").mkdir()
    assert checkout_commit(tmp_path / "inner") is None, "installed inside another project's checkout"
    monkeypatch.setenv("PATH", "")
    assert checkout_commit(tmp_path) is None
