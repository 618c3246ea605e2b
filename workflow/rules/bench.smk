# The ring itself, one job per throttle setting of the last rank, in which all modules, lengths and strategies interleave.


rule bench:
    input:
        models=lambda wildcards: to_split_by(
            model_files(folder_of(wildcards.live)),
            expand(rules.bench.output, live=wildcards.live, percentage=wildcards.percentage),
        ),
    output:
        rows=f"{DATA}/{{live}}/bench/pct-{{percentage}}.csv",
        provenance=f"{DATA}/{{live}}/bench/pct-{{percentage}}.json",
    log:
        f"{LOGS}/{{live}}/bench/pct-{{percentage}}.log",
    conda:
        ENVIRONMENT
    threads: workflow.cores
    resources:
        machine=1,
    params:
        percentages=lambda wildcards: comma((100, int(wildcards.percentage))),
        throttle=lambda wildcards: settings_of(wildcards.live)["throttle"],
        strategies=comma(config["strategies"]),
        models=lambda wildcards, input: Path(input.models[0]).parent,
        source=config["model_source"],
        modules=lambda wildcards: module_options(wildcards.live),
        shape=lambda wildcards: shape_options(wildcards.live),
        repeats=lambda wildcards: repeat_options(wildcards.live),
        # PyTorch's context_parallel and single-GPU attention run on CUDA only.
        peers=lambda wildcards: "--peers" if wildcards.live == "gpu" else "",
    message:
        "Measure the ring on {wildcards.live} at {params.percentages} %"
    shell:
        "heteroring bench --platform {wildcards.live} --throttle {params.throttle}"
        " --percentages {params.percentages} --strategies {params.strategies}"
        " --models {params.models} --model-source {params.source} {params.modules}"
        " {params.shape} {params.repeats} {params.peers} --output {output.rows} > {log} 2>&1"
