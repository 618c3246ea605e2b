# The figures of a platform, in both formats, drawn by one process, since loading its imports and data takes longer than
# drawing a figure; the main platform's also under their plain names.


rule figures:
    input:
        results=lambda wildcards: results_of(wildcards.platform),
        code=code_of("code/heteroring/results/results.py", *FIGURE_CODE),
    output:
        png=[
            report(
                f"{FIGURES}/{{platform}}/{name}.png",
                caption="../report/figure.rst",
                category="Figures",
                subcategory="{platform}",
                labels={"figure": name, "shows": entry.shows},
            )
            for name, entry in CATALOG.items()
        ],
        pdf=[f"{FIGURES}/{{platform}}/{name}.pdf" for name in NAMES],
    log:
        f"{LOGS}/figures/{{platform}}.log",
    conda:
        ENVIRONMENT
    params:
        source=lambda wildcards: folder_of(wildcards.platform),
        folder=f"{FIGURES}/{{platform}}",
    message:
        "Draw the figures of {wildcards.platform}"
    shell:
        "heteroring figure all --platform-dir {params.source} --output-dir {params.folder} > {log} 2>&1"


# Single figures of the record of an experiment, most of whose figures would be empty. If the experiment is the platform
# shown, all its figures are drawn above.
rule experiment_figure:
    input:
        results=lambda wildcards: results_of(wildcards.platform),
        code=code_of("code/heteroring/results/results.py", *FIGURE_CODE),
    output:
        png=report(
            f"{FIGURES}/{{platform}}/{{name}}.png",
            caption="../report/figure.rst",
            category="Figures",
            subcategory="{platform}",
            labels=lambda wildcards: {"figure": wildcards.name, "shows": CATALOG[wildcards.name].shows},
        ),
        pdf=f"{FIGURES}/{{platform}}/{{name}}.pdf",
    log:
        f"{LOGS}/figures/{{platform}}/{{name}}.log",
    wildcard_constraints:
        platform=one_of(each for each in EXPERIMENTS.values() if each not in PLATFORMS.shown),
        name=one_of(EXPERIMENT_FIGURES.values()),
    conda:
        ENVIRONMENT
    params:
        source=lambda wildcards: folder_of(wildcards.platform),
    message:
        "Draw {wildcards.name} of {wildcards.platform}"
    shell:
        "heteroring figure {wildcards.name} --platform-dir {params.source} --output {output.png} --output {output.pdf}"
        " > {log} 2>&1"


ruleorder: experiment_figure > figures


rule main_figure:
    input:
        png=lambda wildcards: f"{FIGURES}/{PLATFORMS.main}/{known_figure(wildcards.name)}.png",
        pdf=f"{FIGURES}/{PLATFORMS.main}/{{name}}.pdf",
    output:
        png=f"{FIGURES}/{{name}}.png",
        pdf=f"{FIGURES}/{{name}}.pdf",
    log:
        f"{LOGS}/figures/{{name}}.log",
    wildcard_constraints:
        name=r"(?!overview\.)[^/]+",  # which the paper's rules draw
    conda:
        ENVIRONMENT
    message:
        f"Show {{wildcards.name}} of {PLATFORMS.main} as the main figure"
    shell:
        "(cp {input.png} {output.png} && cp {input.pdf} {output.pdf}) > {log} 2>&1"
