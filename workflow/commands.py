"""The `heteroring` commands that measure a platform, for the rules and for record.py."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from heteroring.results.model_rows import DECODED
from heteroring.results.rank_percentages import ranks_of
from heteroring.results.strategy import fitted_name

# Profiles that models are fitted to, by kind of model; a layer is profiled where it is measured.
FITS = {
    "lut": ("matmul", "attention"),
    "formula": ("matmul", "attention"),
    "cost": ("attention", "layer"),
}
SEQ_LENS = {"attention": "seq_lens", "fms": "fms_seq_lens"}
RESTED = "rested"
# The cost model by which language models are split, and the profile of a transformer block it is fitted to.
BLOCK_FIT = ("cost", "block")
BLOCK_COST_MODEL = fitted_name(*BLOCK_FIT)

Arguments = tuple[str, ...]


@dataclass(frozen=True)
class Setting:
    """The settings of one job of the ring, or of whole models; `percentages` of the ranks are in rank order.

    part: "" for rested calls of the ring, its layers, and whole models; else the condition under which calls are timed,
    or "decode-8" for decode of 8 sequences. modules: of the ring.
    """

    percentages: tuple[int, ...]
    part: str
    job: int
    modules: tuple[str, ...]
    condition: str
    strategies: tuple[str, ...]

    @property
    def name(self) -> str:
        """The name of its files, without suffix."""
        ranks = "-".join(f"{percentage:03d}" for percentage in self.percentages)
        return ".".join([f"pct-{ranks}", *([self.part] if self.part else []), f"job-{self.job}"])

    @property
    def trace(self) -> str:
        """The name of the file of a whole model's traced layer, which is that chosen by `heteroring model` itself."""
        return self.name.replace("pct-", "trace-")


class Commands:
    """The commands for a live `platform` of a workflow's `config`, whose rows name the platform `label`.

    modules: those of the config's that can be measured here. A command is a tuple of arguments; `output` is the file
    that it writes.
    """

    def __init__(self, config: Mapping, platform: str, modules: Sequence[str], label: str = "") -> None:
        self._config, self._platform, self._modules, self._label = config, platform, tuple(modules), label
        self._settings = config["platforms"][platform]
        self._rings = self._ordered(config["percentages"])
        self.profiled_percentages = tuple(sorted(config["profiled_percentages"], reverse=True)) or _levels(self._rings)
        self.profiles = ("matmul", "attention", "fold", *(["layer"] if "fms" in modules else []))
        fits = [(kind, source) for kind in FITS for source in FITS[kind] if source in self.profiles]
        self.fits = {fitted_name(*fit): fit for fit in fits}
        self._model_rings = self._ordered(config["model_percentages"])
        self.model_profiles = _levels(self._model_rings)

    def settings(self) -> list[Setting]:
        """Every job of the ring, in an order in which jobs to be compared are measured shortly after one another.

        That is one job of every kind before any second one, with all rank orders of the same percentages side by side.
        """
        strategies = (*self._config["strategies"], *self._settings["more_strategies"])
        headline = self._config["headline"]
        corner = [ranks for ranks in self._rings if ranks in map(ranks_of, headline["percentages"])]
        found = []
        for job in range(1, self._settings["jobs"] + 1):
            found += [Setting(ranks, "", job, self._modules, RESTED, strategies) for ranks in self._rings]
            if job == 1:  # conditions are compared by their repetitions, within the same job
                found += [
                    Setting(ranks, condition, job, ("attention",), condition, tuple(headline["strategies"]))
                    for ranks in corner
                    for condition in self._settings["conditions"]
                ]
        return found

    def model_settings(self) -> list[Setting]:
        """Every job of whole models, in the same order."""
        strategies = tuple(self._config["model_strategies"])
        jobs = range(1, self._settings["model"]["jobs"] + 1)
        return [Setting(ranks, "", job, (), RESTED, strategies) for job in jobs for ranks in self._model_rings]

    def decode_settings(self) -> list[Setting]:
        """Every job that only decodes: one per setting and batch. The order of the ranks makes no difference."""
        rings, batches = map(ranks_of, self._config["model_percentages"]), self._settings["model"]["decode"]
        return [
            Setting(ranks, f"decode-{each['batch']}", 1, (), RESTED, (DECODED,))
            for each, ranks in product(batches, rings)
        ]

    def _ordered(self, entries: Iterable[int | Sequence[int]]) -> tuple[tuple[int, ...], ...]:
        """The percentages of the ranks of every ring in `entries` of the config, the fastest rings first."""
        rings = []
        for entry in entries:
            rings.append(ranks_of(entry))
            if entry in self._settings["slow_first"]:
                rings.append(rings[-1][::-1])
        return tuple(sorted(dict.fromkeys(rings), key=sorted, reverse=True))

    def grid(self) -> dict:
        """The grid that the measurements of the ring must fill, for their check."""
        jobs = [
            {
                "percentages": list(each.percentages),
                "condition": each.condition,
                "job": each.job,
                "strategies": list(each.strategies),
                "seq_lens": {module: self._settings[SEQ_LENS[module]] for module in each.modules},
            }
            for each in self.settings()
        ]
        return {"repetitions": self._settings["repetitions"], "jobs": jobs}

    def model_grid(self) -> dict:
        """The grid that the measurements of whole models must fill, for their check."""
        model, settings = self._settings["model"], self.model_settings()
        return {
            "percentages": [list(ranks) for ranks in dict.fromkeys(each.percentages for each in settings)],
            "jobs": model["jobs"],
            "seq_lens": model["seq_lens"],
            "strategies": self._config["model_strategies"],
            "new_tokens": model["new_tokens"],
            "decode": model["decode"],
        }

    def profile(self, percentage: int, output: Path | str) -> Arguments:
        """How fast one rank computes at a percentage."""
        return self._measuring(
            "profile",
            output,
            *self._shape("profiled_lens" if self._settings["profiled_lens"] else "seq_lens"),
            *self._repeats(),
            *self._fms_lengths(self._modules),
            percentage=percentage,
            kinds=_listed(self.profiles),
            sizes=_listed(self._settings["matmul_sizes"]),
        )

    def fit(self, kind: str, source: str, profiles: Iterable[Path | str], output: Path | str) -> Arguments:
        """A model of speed or cost.

        Args:
            kind: "lut", "formula" or "cost".
            source: The operator that it is fitted to.
            profiles: CSVs of profiles.
            output: Path of the model.

        Returns:
            The command's arguments.
        """
        return ("fit", *_options(kind=kind, source=source, output=output), *map(str, profiles))

    def bench(self, setting: Setting, models: Path | str, output: Path | str) -> Arguments:
        """One job of the ring, split by the models in a folder."""
        # PyTorch's context_parallel and single-GPU attention run on CUDA only, and are not recorded as graphs.
        baselines = self._platform == "gpu" and "attention" in setting.modules and setting.condition != "captured"
        return self._measuring(
            "bench",
            output,
            *self._shape(),
            *self._repeats(),
            *self._fms_lengths(setting.modules),
            *(["--peers"] if baselines else []),
            percentages=_listed(setting.percentages),
            strategies=_listed(setting.strategies),
            models=models,
            module=_listed(setting.modules),
            condition=setting.condition,
            job=setting.job,
        )

    def model_profile(self, percentage: int, output: Path | str) -> Arguments:
        """The profile of a block of the whole model on a rank at a percentage."""
        model = self._settings["model"]
        # 0 means the model's own.
        head_dim = model["emb_dim"] // model["heads"] if model["heads"] else 0
        return self._measuring(
            "profile",
            output,
            *self._model_shape(),
            percentage=percentage,
            kinds="attention,fold,block",
            head_dim=head_dim,
            repetitions=self._settings["repetitions"],
        )

    def model(self, setting: Setting, models: Path | str, output: Path | str, trace: Path | str) -> Arguments:
        """The whole model under one throttle setting.

        Args:
            setting: The settings of the job.
            models: Folder of fitted models.
            output: Path of the rows.
            trace: Path of the traced layer's events.

        Returns:
            The command's arguments.
        """
        return self._model(setting, models, output, *self._model_shape(), trace=trace)

    def decode(self, setting: Setting, models: Path | str, output: Path | str) -> Arguments:
        """Decode of the whole model, at lengths and with a batch of its own, under one throttle setting."""
        [each] = [each for each in self._settings["model"]["decode"] if setting.part == f"decode-{each['batch']}"]
        shape = self._model_shape(each["seq_lens"])
        return self._model(setting, models, output, *shape, "--decode-only", batch=each["batch"])

    def _model(
        self, setting: Setting, models: Path | str, output: Path | str, *more: str, **options: object
    ) -> Arguments:
        own = ("layers", "emb_dim", "new_tokens", "repetitions", "cell_seconds")
        return self._measuring(
            "model",
            output,
            *more,
            percentages=_listed(setting.percentages),
            strategies=_listed(setting.strategies),
            models=models,
            job=setting.job,
            **options,
            **{key: self._settings["model"][key] for key in own},
        )

    def rebalancing(self, output: Path | str) -> Arguments:
        """A prefill during which a rank slows down and recovers; not part of the grid."""
        label = {"label": self._label} if self._label else {}
        return ("demo", "--rebalance", *_options(platform=self._platform, **label, output=output))

    def _measuring(self, stage: str, output: Path | str, *more: str, **options: object) -> Arguments:
        label = {"label": self._label} if self._label else {}
        where = _options(platform=self._platform, **label, throttle=self._settings["throttle"])
        return (stage, *where, *more, *_options(**options, output=output))

    def _shape(self, lens: str = "seq_lens") -> Arguments:
        names = ("batch", "heads", "kv_heads", "head_dim", "dtype")
        lengths = _listed(self._settings[lens])
        return _options(seq_lens=lengths, **{name: self._settings[name] for name in names})

    def _repeats(self) -> Arguments:
        return _options(warmup=self._settings["warmup"], repetitions=self._settings["repetitions"])

    def _fms_lengths(self, modules: Sequence[str]) -> Arguments:
        return _options(fms_seq_lens=_listed(self._settings["fms_seq_lens"])) if "fms" in modules else ()

    def _model_shape(self, seq_lens: Sequence[int] = ()) -> Arguments:
        model = self._settings["model"]
        names = ("heads", "kv_heads", "dtype")
        lengths = _listed(seq_lens or model["seq_lens"])
        return _options(model=model["name"], seq_lens=lengths, **{name: model[name] for name in names})


def _levels(rings: Iterable[tuple[int, ...]]) -> tuple[int, ...]:
    """The percentages to profile: those of ranks in `rings`, and 100."""
    return tuple(sorted({100, *(percentage for ranks in rings for percentage in ranks)}, reverse=True))


def _options(**options: object) -> Arguments:
    return tuple(str(text) for name, value in options.items() for text in (f"--{name.replace('_', '-')}", value))


def _listed(values: Iterable) -> str:
    return ",".join(map(str, values))
