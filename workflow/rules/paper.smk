# The paper: numbers as TeX macros, then the PDF.

# What the analysis is computed from: measurements of others, so no platform.
PUBLISHED = "data/published"


rule numbers:
    input:
        main=results_of(PLATFORMS.main),
        live=results_of(PLATFORMS.live),
        published=sorted(map(str, Path(PUBLISHED).glob("*.csv"))),
        code=code_of("workflow/scripts/paper_numbers.py"),
    output:
        tex=f"{LATEX}/generated/numbers.tex",
    log:
        f"{LOGS}/numbers.log",
    conda:
        ENVIRONMENT
    params:
        main=lambda wildcards: folder_of(PLATFORMS.main),
        live=lambda wildcards: folder_of(PLATFORMS.live),
        published=lambda wildcards, input: Path(input.published[0]).parent,
    message:
        "Write the paper's numbers"
    shell:
        "python workflow/scripts/paper_numbers.py {params.main} {params.live} {params.published} {output.tex}"
        " > {log} 2>&1"


if config["run"]:

    rule paper_source:
        input:
            source="latex/{source_file}",
        output:
            source=f"{LATEX}/{{source_file}}",
        log:
            f"{LOGS}/paper/{{source_file}}.log",
        wildcard_constraints:
            source_file=one_of(PAPER_SOURCES),
        conda:
            ENVIRONMENT
        message:
            "Copy {wildcards.source_file} to the paper of this run"
        shell:
            "cp {input.source} {output.source} > {log} 2>&1"


rule paper:
    input:
        sources=paper_sources,
        numbers=rules.numbers.output.tex,
        images=expand(f"{LATEX}/images/{{name}}.pdf", name=NAMES),
        live=expand(f"{LATEX}/images/live/{{name}}.pdf", name=NAMES),
        check="workflow/scripts/check_latex_log.py",
    output:
        pdf=f"{LATEX}/report.pdf",
    log:
        f"{LOGS}/paper.log",
    conda:
        ENVIRONMENT
    params:
        main=f"{LATEX}/report.tex",
        tex_log=f"{LATEX}/report.log",
    message:
        "Typeset the paper"
    shell:
        # A run that failed before leaves a state in which latexmk would refuse to try again.
        "(latexmk -g -cd {params.main} && python {input.check} {params.tex_log}) > {log} 2>&1"
