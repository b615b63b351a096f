"""`fedcl audit RUN`: a finished run is repeated under audits, which its summary then tells of."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import fedcl
import fedcl.core.release
from fedcl.__main__ import _run
from fedcl.config import parse
from tests.audits.test_residual import none, private


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    secret = [{"name": "central_dp", "noise_multiplier": 1.3}]
    fedcl.run(parse(private(audit=[], channel=secret)), tmp_path / "run")
    return tmp_path / "run"


def test_a_finished_run_is_audited(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = json.loads((finished / "summary.json").read_text())
    assert before["epsilon_lower"] is None
    assert _run(["audit", str(finished), "--audit", "residual", "--audit", "canaries"]) == 0
    after = json.loads((finished / "summary.json").read_text())
    assert after["audits"].keys() == {"residual", "canaries"}
    assert 0 <= after["epsilon_lower"] == after["audits"]["canaries"]["epsilon_lower"]
    same = before.keys() - {"epsilon_lower", "audits"}
    assert {key: after[key] for key in same} == {key: before[key] for key in same}
    assert (finished / "audited" / "audit" / "residual.csv").exists()
    page = (finished / "report.html").read_text()
    assert "noise over promised" in page and "at least" in page
    assert (finished / "figures" / "epsilon.png").exists()
    printed = capsys.readouterr().out
    assert "noise over promised" in printed and "epsilon, from below and above" in printed


def test_a_second_audit_gets_a_folder_of_its_own(finished: Path) -> None:
    for _ in range(2):
        assert _run(["audit", str(finished), "--audit", "residual"]) == 0
    assert (finished / "audited" / "summary.json").exists()
    assert (finished / "audited-2" / "summary.json").exists()


def test_options_of_audits_are_set_by_name(finished: Path, tmp_path: Path) -> None:
    words = ["audit", str(finished), "--audit", "canaries", "--out", str(tmp_path / "other")]
    assert _run([*words, "--set", "canaries.canaries=30"]) == 0
    summary = json.loads((finished / "summary.json").read_text())
    assert summary["audits"]["canaries"]["canaries"] == 30
    assert "canaries = 30" in (tmp_path / "other" / "config.toml").read_text()


def test_without_names_all_that_fit_run(tmp_path: Path) -> None:
    fedcl.run(parse(private(audit=[])), tmp_path / "private")
    assert _run(["audit", str(tmp_path / "private")]) == 0
    summary = json.loads((tmp_path / "private" / "summary.json").read_text())
    assert set(summary["audits"]) == {"residual", "canaries"}, "attacks would see canaries"


def test_without_names_a_run_that_nothing_protects_is_attacked(tmp_path: Path) -> None:
    fedcl.run(parse(private(channel=[], audit=[])), tmp_path / "bare")
    assert _run(["audit", str(tmp_path / "bare")]) == 0
    summary = json.loads((tmp_path / "bare" / "summary.json").read_text())
    assert set(summary["audits"]) == {"inversion", "classes"}


def test_a_broken_mechanism_ends_with_status_3(
    finished: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(fedcl.core.release, "gaussian", none)
    assert _run(["audit", str(finished), "--audit", "residual"]) == 3
    told = capsys.readouterr()
    assert "FAILED: residual" in told.err and "FAILED: the noise is not" in told.out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--audit", "residuals"], "did you mean 'residual'"),
        (["--audit", "residual", "--set", "canaries.canaries=30"], "no such audit runs"),
        (["--audit", "canaries", "--set", "canaries.canaries=3"], "must be at least 20, not 3"),
    ],
)
def test_what_cannot_work_is_said(
    words: list[str], message: str, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (finished / "summary.json").read_text()
    assert _run(["audit", str(finished), *words]) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert (finished / "summary.json").read_text() == before


def test_folders_without_a_private_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _run(["audit", str(tmp_path)]) == 2
    assert "holds no finished run" in " ".join(capsys.readouterr().err.split())
    fedcl.run(parse(private(channel=[], audit=[])), tmp_path / "bare")
    assert _run(["audit", str(tmp_path / "bare"), "--audit", "residual"]) == 2
    assert "adds noise that could be tested" in " ".join(capsys.readouterr().err.split())
