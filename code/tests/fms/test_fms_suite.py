"""FMS's own tests of a model, in a process that has imported heteroring.fms and in one that has not."""

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

pytest.importorskip("fms")

CODE = Path(__file__).parents[2]

pytestmark = pytest.mark.ranks

# What FMS's tests/models/test_llama.py is made of, without what compiles: its model, its suites and their fixtures.
SUITE = """
import pytest
from fms.models.llama import LLaMA, LLaMAConfig
from fms.testing._internal.model_test_suite import ModelConfigTestSuite, ModelConsistencyTestSuite


class TestLlama(ModelConfigTestSuite, ModelConsistencyTestSuite):
    _get_signature_params = ["x"]

    @pytest.fixture(scope="class", autouse=True)
    def config(self):
        return LLaMAConfig(src_vocab_size=384, emb_dim=16, nheads=8, kvheads=4, nlayers=2, max_expected_seq_len=256)

    @pytest.fixture(scope="class", autouse=True)
    def uninitialized_model(self, config):
        return LLaMA(config)
"""

CONFTEST = """
import sys

import pytest

if "{imported}" == "yes":
    import heteroring.fms


def pytest_addoption(parser):
    parser.addoption("--capture_expectation", action="store_true")


@pytest.fixture(scope="session", autouse=True)
def capture_expectation(request):
    return request.config.getoption("--capture_expectation")


def pytest_sessionfinish():
    assert ("heteroring.fms" in sys.modules) == ("{imported}" == "yes")
"""


def run(folder, imported, *options):
    (folder / "tests/conftest.py").write_text(CONFTEST.replace("{imported}", "yes" if imported else "no"))
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", "/dev/null", *options, "tests/models"],
        cwd=folder,
        env={"PYTHONPATH": str(CODE), "PATH": "/usr/bin:/bin", "HOME": str(folder), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_fms_tests_of_llama_hold_what_they_held_without_heteroring(tmp_path):
    for name in ("tests/models", "tests/resources/expectations"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "tests/models/test_llama.py").write_text(textwrap.dedent(SUITE))
    captured = run(tmp_path, False, "--capture_expectation", "-k", "model_output or model_weight_keys")
    assert "2 failed" in captured.stdout, captured.stdout  # FMS fails a test whose expectation it writes
    assert len(list((tmp_path / "tests/resources/expectations").iterdir())) == 2
    result = run(tmp_path, True)
    assert result.returncode == 0, result.stdout
    assert "6 passed" in result.stdout
