"""`python -m edge_agent.measure`: what a person gets, and what is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from edge_agent.measure import Comparison, Measurement, QpsSearch
from edge_agent.measure.__main__ import main
from tests.runtime.networks import write_bundle


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("bundle")
    write_bundle(directory)
    return directory


def run(
    capsys: pytest.CaptureFixture[str], *arguments: object
) -> tuple[int | str | None, str, str]:
    """Exit code, standard output and standard error."""
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    said = capsys.readouterr()
    return ended.value.code, said.out, said.err


def test_a_bundle_is_measured_as_a_command_of_its_own(bundle: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "edge_agent.measure", str(bundle), "--quick"],
        capture_output=True, text=True, timeout=100,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    for said in ("linear/fp32", "single_stream (quick", "verdict", "p99", "runtime", "cpu flags"):
        assert said in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 100


def test_json_is_one_object_with_all_that_was_found(
    bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = run(
        capsys, bundle, "--quick", "--json", "--memory", "--scenario", "server",
        "--qps", 2000, "--latency-ms", 900, "--percentile", 90, "--instances", 2,
    )  # fmt: skip
    found = json.loads(out)
    assert (code, found["kind"]) == (0, "Measurement")
    result = Measurement.model_validate(found["result"])
    assert (result.scenario, result.target_qps, result.target_latency_ms) == ("server", 2000, 900)
    assert (result.percentile, result.concurrency) == (0.9, 2)
    assert result.provenance["instances"] == "2"
    assert found["memory_mib"] > 20


def test_whole_batches_are_measured_offline(
    bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = run(capsys, bundle, "--quick", "--scenario", "offline", "--batch", 4)
    assert code == 0
    assert "offline, batches of 4" in out


def test_the_highest_rate_is_searched_within_its_time(
    bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = run(
        capsys, bundle, "--quick", "--scenario", "highest_qps", "--latency-ms", 200,
        "--time-limit-s", 2, "--json",
    )  # fmt: skip
    found = json.loads(out)
    assert (code, found["kind"]) == (0, "QpsSearch")
    assert QpsSearch.model_validate(found["result"]).target_latency_ms == 200


def test_two_bundles_are_compared(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_bundle(tmp_path, seed=1)
    arguments = (bundle, "--quick", "--against", tmp_path, "--time-limit-s", 1)
    code, out, _ = run(capsys, *arguments, "--json")
    found = json.loads(out)
    assert (code, found["kind"]) == (0, "Comparison")
    assert Comparison.model_validate(found["result"]).pairs >= 1
    assert "speedup" in run(capsys, *arguments)[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--scenario", "server"], "needs --qps"),
        (["--scenario", "highest_qps"], "needs --latency-ms"),
        (["--scenario", "highest_qps", "--latency-ms", "5", "--qps", "5"], "does not take --qps"),
        (["--scenario", "single_stream", "--qps", "5"], "has no rate"),
        (["--scenario", "offline", "--latency-ms", "5"], "offline judges throughput"),
        (["--scenario", "multi"], "invalid choice: 'multi'"),
        (["--batch", "4"], "--batch is for --scenario offline"),
        (["--time-limit-s", "4"], "--time-limit-s is for"),
        (["--latency-ms", "-1"], "must be a positive number, not -1"),
        (["--latency-ms", "nan"], "must be a positive number"),
        (["--qps", "many"], "invalid number value: 'many'"),
        (["--percentile", "100"], "must be between 0 and 100"),
        (["--instances", "0"], "must be between 1 and"),
        (["--quick", "--mlperf"], "not allowed with"),
        (["--against", "/nowhere"], "/nowhere: no unpacked bundle"),
        (["--against", "x", "--qps", "1"], "does not take --qps"),
        (["--faster"], "unrecognized arguments: --faster"),
    ],
)
def test_a_wrong_option_is_one_clear_line(
    arguments: list[str], message: str, bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = run(capsys, bundle, *arguments)
    assert (code, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1


def test_a_bundle_that_cannot_be_measured_is_one_clear_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def said(directory: Path) -> str:
        code, out, err = run(capsys, directory)
        assert (code, out, err.count("\n")) == (2, "", 1)
        return err

    assert "no unpacked bundle: manifest.json: No such file" in said(tmp_path / "absent")
    write_bundle(tmp_path / "blind", with_golden=False)
    assert "has no known answers" in said(tmp_path / "blind")
    write_bundle(tmp_path / "damaged")
    (tmp_path / "damaged/model.onnx").write_bytes(b"no network")
    assert "model.onnx: cannot be loaded" in said(tmp_path / "damaged")
    (tmp_path / "damaged/manifest.json").write_text("{")
    assert "manifest" in said(tmp_path / "damaged").lower()
    write_bundle(tmp_path / "torn")
    (tmp_path / "torn/golden.npz").write_bytes(b"torn")
    assert "golden.npz" in said(tmp_path / "torn")
