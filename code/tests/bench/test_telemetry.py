"""Telemetry of GPUs during a job: recorded where the driver reports it, absent where it does not."""

from heteroring.bench import telemetry
from heteroring.bench.telemetry import Sample, summary
from heteroring.results.provenance import RankReport


class Nvml:
    """Two GPUs, of which the second warms up with each sample."""

    def __init__(self):
        self.taken = 0

    def uuids(self):
        return ["GPU-a", "GPU-b"]

    def sample(self):
        self.taken += 1
        return [Sample(1980, 100.0, 30), Sample(1000 + self.taken, 700.0 - self.taken, 40 + self.taken)]


def test_every_gpu_is_sampled_before_after_and_meanwhile(monkeypatch):
    nvml = Nvml()
    monkeypatch.setattr(telemetry, "Nvml", lambda: nvml)
    with telemetry.telemetry("gpu") as gpus:
        assert gpus == []
    assert [gpu["uuid"] for gpu in gpus] == ["GPU-a", "GPU-b"]
    assert gpus[1]["samples"] == nvml.taken >= 2
    assert gpus[1]["temperature_c"] == {"before": 41, "after": 40 + nvml.taken, "highest": 40 + nvml.taken}


def test_a_summary_has_the_range_of_what_was_seen():
    found = summary("GPU-a", [Sample(1500, 300.0, 50), Sample(1980, 690.0, 61), Sample(1200, 700.0, 58)])
    assert found["sm_mhz"] == {"lowest": 1200, "median": 1500, "highest": 1980}
    assert found["power_w"] == {"median": 690.0, "highest": 700.0}
    assert found["temperature_c"] == {"before": 50, "after": 58, "highest": 61}


def test_no_job_fails_for_want_of_a_driver(monkeypatch):
    def missing():
        raise OSError("libnvidia-ml.so.1: cannot open shared object file")

    monkeypatch.setattr(telemetry, "Nvml", missing)
    for platform in ("gpu", "cpu"):
        with telemetry.telemetry(platform) as gpus:
            pass
        assert gpus == []


def test_a_rank_without_a_gpu_has_no_uuid():
    assert RankReport("EPYC", 0, {}).uuid == ""
