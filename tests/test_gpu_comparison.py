"""scripts/compare_on_gpu.sh without a GPU: the commands it runs, and the table it prints."""

import os
import stat
import subprocess
import sys

import pytest

# A fake Python with a GPU: it has every package, logs its arguments, and prints measurements.
PYTHON = r"""#!/usr/bin/env bash
echo "$*" >>"$CALLS"
case "$*" in
-) cat >/dev/null ;;
*'benchmark attention'*)
    seconds=0.001
    for form in 'plain attention, cuDNN' cuDNN 'no attention'; do
        echo "{\"model\": \"$5\", \"form\": \"$form\", \"forward_seconds\": $seconds,
            \"train_seconds\": 0.002}" | tr -d '\n'
        echo
        seconds=0.0011
    done ;;
*'--gpsa-layers 0'*) echo "{\"model\": \"$4\", \"gpsa_layers\": 0, $SPEED, \"timm\": {}}" ;;
*'benchmark model'*)
    echo "{\"model\": \"$4\", \"gpsa_layers\": 10, $SPEED, \"timm\": {
        \"eager forward\": 500, \"eager train\": 100,
        \"compiled forward\": 800, \"compiled train\": 200}}" | tr -d '\n'
    echo ;;
*) exec "$REAL_PYTHON" "$@" ;;
esac
"""
SPEED = '"forward_images_per_second": 1000, "train_images_per_second": 400'


@pytest.fixture
def compare(tmp_path, repository):
    def run(python, **variables):
        environment = os.environ | {"PYTHON": str(python)} | variables
        return subprocess.run(
            ["scripts/compare_on_gpu.sh", str(tmp_path / "results")],
            cwd=repository, env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip

    return run


def test_everything_is_compiled_then_measured_and_printed_as_one_table(compare, tmp_path):
    python, calls = tmp_path / "python", tmp_path / "calls"
    python.write_text(PYTHON)
    python.chmod(python.stat().st_mode | stat.S_IXUSR)
    result = compare(
        python, MODELS="convit_small", CALLS=str(calls), REAL_PYTHON=sys.executable, SPEED=SPEED
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines() == [
        "| model | what | forward | with gradients |",
        "|---|---|---|---|",
        "| convit_small | layer: plain attention, cuDNN | 1.000 ms (1.00) | 2.000 ms (1.00) |",
        "| convit_small | layer: cuDNN | 1.100 ms (1.10) | 2.000 ms (1.00) |",
        "| convit_small | layer: no attention | 1.100 ms (1.10) | 2.000 ms (1.00) |",
        "| convit_small | images/s | 1,000 | 400 |",
        "| convit_small | plain attention (its images/s over ours) | 1,000 (1.00) | 400 (1.00) |",
        "| convit_small | timm, compiled (ours over its) | 800 (1.25) | 200 (2.00) |",
        "| convit_small | timm, eager (ours over its) | 500 (2.00) | 100 (4.00) |",
    ]
    benchmarks = [line for line in calls.read_text().splitlines() if "benchmark" in line]
    assert len(benchmarks) == 6
    assert all("--seconds 0" in line for line in benchmarks[:3])
    assert all("--seconds 3" in line for line in benchmarks[3:])
    assert all("--batch-size 128 --dtype bfloat16" in line for line in benchmarks)


def test_without_a_gpu_it_says_what_is_expected(compare, tmp_path):
    python, package_check = tmp_path / "python", tmp_path / "package_check"
    # The first call, the check for packages, finds nothing missing; the second, the check for a
    # GPU, is real.
    python.write_text(
        f"""#!/usr/bin/env bash
        [ -e {package_check} ] && exec {sys.executable} "$@"
        cat >{package_check}
        """
    )
    python.chmod(python.stat().st_mode | stat.S_IXUSR)
    result = compare(python)
    assert result.returncode == 1
    assert "needed = {" in package_check.read_text()
    assert "expected" in result.stderr
    assert "jax[cuda13]" in result.stderr
