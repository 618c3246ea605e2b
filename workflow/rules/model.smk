# Measurements of language models over the ring: the profile of one of their blocks, then a job per throttle setting.


rule model_profile:
    output:
        rows=f"{DATA}/{{live}}/model/profile/pct-{{percentage}}.csv",
        provenance=f"{DATA}/{{live}}/model/profile/pct-{{percentage}}.json",
    log:
        f"{LOGS}/{{live}}/model/profile/pct-{{percentage}}.log",
    priority: FIRST
    conda:
        ENVIRONMENT
    threads: workflow.cores
    resources:
        machine=1,
    params:
        command=lambda wildcards: command(
            COMMANDS[wildcards.live].model_profile(
                int(wildcards.percentage), at(rules.model_profile.output.rows, wildcards)
            )
        ),
    message:
        "Profile a block of the model on one {wildcards.live} rank at {wildcards.percentage} %"
    shell:
        "{params.command} > {log} 2>&1"


rule model_fit:
    input:
        profile=lambda wildcards: expand(
            f"{DATA}/{wildcards.live}/model/profile/pct-{{percentage}}.csv", percentage=MODEL_PROFILES
        ),
        code=code_of(FITTING),
    output:
        model=f"{DATA}/{{live}}/model/models/{BLOCK_COST_MODEL}.json",
    log:
        f"{LOGS}/{{live}}/model/models/{BLOCK_COST_MODEL}.log",
    priority: FIRST
    conda:
        ENVIRONMENT
    params:
        command=lambda wildcards, input, output: command(
            COMMANDS[wildcards.live].fit(*BLOCK_FIT, input.profile, output.model)
        ),
    message:
        "Fit the cost of the model's block on {wildcards.live}"
    shell:
        "{params.command} > {log} 2>&1"


rule model:
    input:
        cost=lambda wildcards: to_split_by(
            [f"{DATA}/{wildcards.live}/model/models/{BLOCK_COST_MODEL}.json"],
            expand(rules.model.output, live=wildcards.live, whole=wildcards.whole),
        ),
    output:
        rows=f"{DATA}/{{live}}/model/pct-{{whole}}.csv",
        provenance=f"{DATA}/{{live}}/model/pct-{{whole}}.json",
        trace=f"{DATA}/{{live}}/model/trace-{{whole}}.csv",
    log:
        f"{LOGS}/{{live}}/model/pct-{{whole}}.log",
    conda:
        ENVIRONMENT
    threads: workflow.cores
    resources:
        machine=1,
    params:
        command=lambda wildcards: command(
            COMMANDS[wildcards.live].model(
                setting_of(MODEL_SETTINGS[wildcards.live], f"pct-{wildcards.whole}"),
                Path(at(rules.model_fit.output.model, wildcards)).parent,
                at(rules.model.output.rows, wildcards),
                at(rules.model.output.trace, wildcards),
            )
        ),
    message:
        "Measure the whole model on {wildcards.live}: {wildcards.whole}"
    shell:
        "{params.command} > {log} 2>&1"


rule decode:
    input:
        cost=lambda wildcards: to_split_by(
            [f"{DATA}/{wildcards.live}/model/models/{BLOCK_COST_MODEL}.json"],
            expand(rules.decode.output, live=wildcards.live, decode=wildcards.decode),
        ),
    output:
        rows=f"{DATA}/{{live}}/model/pct-{{decode}}.csv",
        provenance=f"{DATA}/{{live}}/model/pct-{{decode}}.json",
    log:
        f"{LOGS}/{{live}}/model/pct-{{decode}}.log",
    conda:
        ENVIRONMENT
    threads: workflow.cores
    resources:
        machine=1,
    params:
        command=lambda wildcards: command(
            COMMANDS[wildcards.live].decode(
                setting_of(DECODE_SETTINGS[wildcards.live], f"pct-{wildcards.decode}"),
                Path(at(rules.model_fit.output.model, wildcards)).parent,
                at(rules.decode.output.rows, wildcards),
            )
        ),
    message:
        "Measure decode by itself on {wildcards.live}: {wildcards.decode}"
    shell:
        "{params.command} > {log} 2>&1"


rule model_checks:
    input:
        model="{folder}/derived/model.csv",
        trace="{folder}/derived/trace.csv",
        code=code_of("workflow/scripts/check_model.py"),
    output:
        report="{folder}/derived/model-checks.txt",
    log:
        "{folder}/derived/model-checks.log",
    conda:
        ENVIRONMENT
    params:
        grid=lambda wildcards: json.dumps(model_grid_of(FOLDERS[wildcards.folder])),
        noise=lambda wildcards: noise_of(FOLDERS[wildcards.folder]),
    message:
        "Check the measurements of the whole model in {wildcards.folder}"
    shell:
        "python workflow/scripts/check_model.py {input.model} {input.trace} {output.report}"
        " {params.grid:q} {params.noise} > {log} 2>&1"


# Not part of the grid: measured on request, and shown by the figures from then on.
rule rebalancing:
    output:
        rows=f"{DATA}/{{live}}/{CHUNKS}",
        provenance=f"{DATA}/{{live}}/{Path(CHUNKS).with_suffix('.json')}",
    log:
        f"{LOGS}/{{live}}/rebalancing.log",
    conda:
        ENVIRONMENT
    threads: workflow.cores
    resources:
        machine=1,
    params:
        command=lambda wildcards: command(
            COMMANDS[wildcards.live].rebalancing(at(rules.rebalancing.output.rows, wildcards))
        ),
    message:
        "Measure a prefill on {wildcards.live} during which a rank slows down and recovers"
    shell:
        "{params.command} > {log} 2>&1"
