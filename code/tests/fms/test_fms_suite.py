"""FMS's own tests of a model, before and after a process imports heteroring.fms."""

import subprocess
import sys

import pytest

from tree import ROOT

pytest.importorskip("fms")

CODE = ROOT / "code"

pytestmark = pytest.mark.ranks

# The parts of FMS's tests/models/test_llama.py, without those that compile: its model, its suites and their fixtures.
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
import pytest


def pytest_addoption(parser):
    parser.addoption("--capture_expectation", action="store_true")


@pytest.fixture(scope="session", autouse=True)
def capture_expectation(request):
    return request.config.getoption("--capture_expectation")
"""

# FMS fails a test whose expectation it writes: two of them, before the import.
PROGRAM = """
import sys

import pytest

OPTIONS = ["-q", "-p", "no:cacheprovider", "-c", "/dev/null", "tests/models"]
pytest.main([*OPTIONS, "--capture_expectation", "-k", "model_output or model_weight_keys"])
assert not any(name.startswith("heteroring") for name in sys.modules)
import heteroring.fms

sys.exit(pytest.main(OPTIONS))
"""


def test_fms_tests_of_llama_hold_what_they_held_without_heteroring(tmp_path):
    for name in ("tests/models", "tests/resources/expectations"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "tests/conftest.py").write_text(CONFTEST)
    (tmp_path / "tests/models/test_llama.py").write_text(SUITE)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=tmp_path,
        env={"PYTHONPATH": str(CODE), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 failed" in done.stdout, done.stdout
    assert "6 passed" in done.stdout, done.stdout
    assert len(list((tmp_path / "tests/resources/expectations").iterdir())) == 2
