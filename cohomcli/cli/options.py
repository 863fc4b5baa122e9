"""The table of command-line options: each is one row that names its config key; commands pick groups of rows."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer


@dataclass(frozen=True)
class Flag:
    """One option. `key` is the config key it sets, or a plain name for options that are not configuration."""

    key: str
    names: tuple[str, ...]
    type: Any
    help: str
    panel: str
    default: Any = None
    hidden: bool = False
    metavar: str | None = None

    @property
    def parameter(self) -> str:
        """The Python parameter name."""
        return self.key.replace(".", "__")


_MODEL, _DATA, _HOW, _OUT = "Models", "Data", "Analysis", "Output and control"

MODELS = (
    Flag("models", ("--model", "-m"), list[str], "Built-in, preset, hub id, folder or file (repeatable).", _MODEL),
    Flag("models_list", ("--models",), str, "Several models, separated by commas.", _MODEL, metavar="A,B"),
    Flag("hf_model", ("--hf-model",), list[str], "The same as --model (kept for todacomm users).", _MODEL, hidden=True),
    Flag("num_layers", ("--num-layers",), int, "Ignored: layers are read from the model.", _MODEL, hidden=True),
    Flag("loading.revision", ("--revision",), str, "Branch, tag or commit of a hub model.", _MODEL),
    Flag("loading.trust_remote_code", ("--trust-remote-code/--no-trust-remote-code",), bool,
         "Run Python code that the model ships. Only for sources you trust.", _MODEL),
    Flag("loading.tokenizer", ("--tokenizer",), str,
         "Folder, built-in model or hub id whose tokenizer is used [the model's own].", _MODEL, metavar="NAME"),
    Flag("loading.config_json", ("--config-json",), str,
         "For a model file: the config.json that says what its weights are.", _MODEL, metavar="FILE"),
    Flag("loading.model_code", ("--model-code",), str,
         "For a model file: your own code that builds the model, which is run.", _MODEL, metavar="FILE.py:FUNCTION"),
    Flag("loading.weights_at", ("--weights-at",), str,
         "For a checkpoint: the place of the weights inside it, such as ema.state_dict.", _MODEL, metavar="PLACE"),
    Flag("loading.trust", ("--trust/--no-trust",), bool,
         "For a pickled file: run the code inside it, in a child process with limits; the run records that.", _MODEL),
)  # fmt: skip
DATA = (
    Flag("datasets", ("--dataset", "-d"), list[str],
         "Texts: builtin, wikitext2, squad, a text/jsonl/csv file, a folder or a hub id (repeatable).", _DATA),
    Flag("datasets_list", ("--datasets",), str, "Several data sets, separated by commas.", _DATA, metavar="A,B"),
    Flag("data.config", ("--dataset-config",), str, "Configuration of a hub data set.", _DATA),
    Flag("data.split", ("--split",), str, "Split of the data set.", _DATA),
    Flag("data.field", ("--field",), str, "Text column of jsonl, csv and hub data sets.", _DATA),
    Flag("data.unit", ("--unit",), str, "One text of a plain file: auto, line, paragraph or file.", _DATA),
    Flag("data.samples", ("--samples", "-n"), int, "Distinct texts to analyse, exactly this many [200].", _DATA),
    Flag("activations.max_length", ("--max-length",), int, "Tokens kept of a text [128].", _DATA),
)  # fmt: skip
ANALYSIS = (
    Flag("activations.layers", ("--layers", "-l"), str, "all, or a list such as embedding,0-5,-1,final_norm.", _HOW),
    Flag("activations.sites", ("--sites",), str, "Outputs in a block: block,attention,mlp [block].", _HOW),
    Flag("activations.pooling", ("--pooling",), str, "auto, last, cls or mean [auto].", _HOW),
    Flag("activations.stream", ("--stream",), str,
         "Activations on disk: auto (when they would take half of the memory), always, never [auto].", _HOW),
    Flag("activations.token_budget", ("--token-budget",), int, "Tokens per batch [from the memory forecast].", _HOW),
    Flag("topology.pca", ("--pca",), int, "Principal components kept; 0 keeps all [50].", _HOW),
    Flag("topology.maxdim", ("--maxdim",), int, "Highest homology dimension, 0 to 2 [1].", _HOW),
    Flag("topology.metric", ("--metric",), str, "euclidean, cosine, cityblock, chebyshev, correlation.", _HOW),
    Flag("topology.engine", ("--engine",), str, "auto, redzed or ripser [auto].", _HOW),
    Flag("topology.threshold", ("--threshold",), float,
         "End the filtration at this length; classes alive there are censored, not essential.", _HOW),
    Flag("topology.threshold_unit", ("--threshold-unit",), str,
         "distance, or scale: of the layer's mean pairwise distance [distance].", _HOW),
    Flag("topology.landmarks", ("--landmarks",), int,
         "Analyse K maxmin landmarks only; the guaranteed error is printed.", _HOW, metavar="K"),
    Flag("topology.representatives", ("--representatives",), int,
         "Name the texts that form the K longest loops of every layer.", _HOW, metavar="K"),
    Flag("topology.time_limit", ("--max-seconds",), float,
         "Refuse when the forecast exceeds these CPU seconds; 0: never [3600].", _HOW),
    Flag("evidence.null_model", ("--null",), str,
         "Test loops against structureless clouds: rotation (exact), gaussian, column, none [rotation].", _HOW),
    Flag("evidence.replicates", ("--replicates",), int, "Clouds of the null model per layer [199].", _HOW),
    Flag("evidence.bands", ("--bands/--no-bands",), bool, "95% confidence limits by subsampling.", _HOW),
    Flag("topology.compat", ("--compat",), str, "todacomm: also report the figures as todacomm defines them.", _HOW),
    Flag("topology.vectors", ("--vectors/--no-vectors",), bool,
         "Also write Betti curves, landscapes, silhouettes, entropy curves and persistence images.", _HOW),
    Flag("topology.geometry", ("--geometry/--no-geometry",), bool,
         "Intrinsic dimension, hubness and anisotropy of every layer.", _HOW),
    Flag("topology.similarity", ("--similarity",), str,
         "Measures between layers, such as cka,rtd-lite,nts-e [none].", _HOW, metavar="A,B"),
    Flag("topology.track_neighbours", ("--track",), int,
         "Neighbours in the graphs that are tracked over the layers; 0: none [5].", _HOW, metavar="K"),
    Flag("topology.attention_texts", ("--attention-topology",), int,
         "Texts whose attention graphs are analysed, head by head [0].", _HOW, metavar="N"),
)  # fmt: skip
MACHINE = (
    Flag("compute.seed", ("--seed",), int, "Seed of every draw [0].", _HOW),
    Flag("compute.device", ("--device",), str, "cpu, cuda, cuda:N or mps [cpu].", _HOW),
    Flag("compute.threads", ("--threads",), int, "CPU threads [the cores this process may use].", _HOW),
    Flag("compute.memory", ("--memory",), float, "Memory the topology may use [what is free].", _HOW, metavar="GIB"),
    Flag("compute.backend", ("--backend",), str, "Analyse layers on: auto, threading, loky, dask or ray [auto].", _HOW),
    Flag("compute.scheduler", ("--scheduler",), str, "Scheduler of a Dask cluster, e.g. tcp://host:8786.", _HOW,
         metavar="ADDRESS"),
    Flag("compute.address", ("--address",), str, "Ray cluster [starts Ray here].", _HOW, metavar="ADDRESS"),
)  # fmt: skip
METRICS = (
    Flag("metrics.perplexity", ("--perplexity/--no-perplexity",), bool, "Measure perplexity and accuracy.", _HOW),
    Flag("metrics.positions", ("--positions",), int, "Masked positions per text for encoders; 0: all [8].", _HOW),
)
_PRECISION = "Precision"
PRECISION = (
    Flag("precision.epsilon", ("--eps", "--epsilon"), float, "Largest output error allowed [0.01].", _PRECISION),
    Flag("precision.norm", ("--norm",), str, "rel-l2, max-abs, or kl of the output distribution [rel-l2].", _PRECISION),
    Flag("precision.formats", ("--formats",), str, "Of fp64,fp32,bf16,fp16,e4m3,e5m2,int8 [fp32,bf16,fp16].",
         _PRECISION, metavar="A,B"),
    Flag("precision.objective", ("--objective",), str, "Minimise bytes, weights, or a cost table (JSON file) [bytes].",
         _PRECISION),
    Flag("precision.granularity", ("--granularity",), str, "What takes one format: op, module or block [op].",
         _PRECISION),
    Flag("precision.keep", ("--keep",), list[str], "Formats wished for, e.g. lm_head=fp32 or '*norm*=fp32|bf16'.",
         _PRECISION, metavar="PATTERN=FORMAT"),
    Flag("precision.hardware", ("--hardware",), str, "Formats that can be computed in: cpu, sm70 to sm90, or a file.",
         _PRECISION),
    Flag("precision.calibration", ("--calibration",), int, "Inputs that the plan is made on [4].", _PRECISION),
    Flag("precision.heldout", ("--heldout",), int, "Further inputs that its error is measured on [4].", _PRECISION),
    Flag("precision.survey", ("--survey",), int, "Further calibration texts that unseen ones are judged by [12 to 28].",
         _PRECISION),
    Flag("precision.length", ("--length",), int, "Tokens per text [32].", _PRECISION),
    Flag("precision.baselines", ("--baselines/--no-baselines",), bool,
         "Measure uniform formats, half() and autocast too.", _PRECISION),
)  # fmt: skip
PRECISION_INPUTS = (
    Flag("precision.inputs", ("--input",), list[str], "Input tensors (.pt, .npy, .npz, .safetensors; repeatable).",
         _PRECISION, metavar="FILE"),
    Flag("precision.heldout_inputs", ("--heldout-input",), list[str], "Inputs to measure on (repeatable).", _PRECISION,
         metavar="FILE"),
    Flag("precision.input_shape", ("--input-shape",), str, "Random normal inputs of this shape, e.g. 1x3x224x224.",
         _PRECISION, metavar="SHAPE"),
    Flag("precision.outputs", ("--outputs",), str, "Outputs that count, e.g. logits [all].", _PRECISION),
    Flag("precision.batch", ("--batch",), int, "Texts per input [1].", _PRECISION),
    Flag("precision.probes", ("--probes",), int, "Random adjoints per input [16].", _PRECISION),
    Flag("precision.rounds", ("--rounds",), int, "Rounds of planning and measuring at most [3].", _PRECISION),
    Flag("precision.headroom", ("--headroom",), float, "Range left free above what calibration saw [2].", _PRECISION),
    Flag("precision.time_limit", ("--time-limit",), float, "Seconds per solve, the last resort [60].", _PRECISION),
    Flag("precision.pareto", ("--pareto",), int, "Points of the trade-off curve [9].", _PRECISION),
    Flag("precision.box", ("--certify-box",), float,
         "Prove an error bound of the plan for all inputs within R of the first (small feed-forward nets).", _PRECISION,
         metavar="R"),
    Flag("precision.refute", ("--refute/--no-refute",), bool,
         "Prove, where it can be, that uniform formats cannot keep --eps; writes certificates.", _PRECISION),
    Flag("precision.export", ("--export",), list[str],
         "Write the plan for other tools: torch, onnx, torchao, hf, modelopt, bitsandbytes, autocast (repeatable).",
         _PRECISION, metavar="A,B"),
    Flag("precision.save_model", ("--save-model/--no-save-model",), bool,
         "Write the model with its weights in the plan's formats.", _PRECISION),
)  # fmt: skip
_TRAIN = "Training"
TRAINING = (
    Flag("training.objective", ("--objective",), str, "auto, causal, masked or grid [auto: the model's head].", _TRAIN),
    Flag("training.exact_weight", ("--exact-weight",), float, "Weight of the exact-sequence loss [0].", _TRAIN),
    Flag("training.spectral_weight", ("--spectral-weight",), float, "Weight of the spectral loss [0].", _TRAIN),
    Flag("training.max_steps", ("--max-steps",), int, "Updates of the weights [1000].", _TRAIN),
    Flag("training.epochs", ("--epochs", "--num-train-epochs"), float, "Passes over the data, instead.", _TRAIN),
    Flag("training.batch_size", ("--batch-size", "--per-device-train-batch-size"), int,
         "Sequences per process and micro-batch [8].", _TRAIN),
    Flag("training.accumulation", ("--gradient-accumulation-steps",), int, "Micro-batches per update [1].", _TRAIN),
    Flag("training.block_size", ("--block-size",), int, "Tokens per sequence [128].", _TRAIN),
    Flag("training.learning_rate", ("--learning-rate", "--lr"), float, "Peak learning rate [0.001].", _TRAIN),
    Flag("training.weight_decay", ("--weight-decay",), float, "Decay of matrices [0.1].", _TRAIN),
    Flag("training.max_grad_norm", ("--max-grad-norm",), float, "Clip gradients to this norm; 0: never [1].", _TRAIN),
    Flag("training.schedule", ("--lr-scheduler-type",), str, "cosine, linear, wsd, constant or spectral [cosine].",
         _TRAIN),
    Flag("training.optimizer", ("--optimizer",), str, "adamw, or exact: keeps what the next block reads [adamw].",
         _TRAIN),
    Flag("training.warmup_steps", ("--warmup-steps",), int, "Steps of linear warm-up [100].", _TRAIN),
    Flag("training.mixed_precision", ("--mixed-precision",), str, "no, bf16 or fp16 [no].", _TRAIN),
    Flag("training.gradient_checkpointing", ("--gradient-checkpointing/--no-gradient-checkpointing",), bool,
         "Recompute activations instead of keeping them.", _TRAIN),
    Flag("training.ema_decay", ("--ema",), float, "Decay of averaged weights, which are then kept [0: off].", _TRAIN),
    Flag("training.log_every", ("--logging-steps",), int, "Steps between lines of the log [10].", _TRAIN),
    Flag("training.eval_every", ("--eval-steps",), int, "Steps between evaluations [100].", _TRAIN),
    Flag("training.save_every", ("--save-steps",), int, "Steps between checkpoints; 0: only the last [100].", _TRAIN),
    Flag("training.keep", ("--save-total-limit",), int, "Checkpoints kept [2].", _TRAIN),
    Flag("training.patience", ("--patience",), int, "Evaluations without a better loss that end the run.", _TRAIN),
    Flag("training.max_time", ("--max-time",), float, "Seconds after which the run ends with a checkpoint.", _TRAIN),
    Flag("training.mask", ("--mask",), str, "Keep zero what these masks of a pruned model hide.", _TRAIN,
         metavar="FOLDER"),
    Flag("training.track_topology", ("--track-topology",), int, "Measure the layers' topology so often.", _TRAIN,
         metavar="STEPS"),
    Flag("training.texts", ("--texts",), int, "Texts to train on [all].", _TRAIN),
    Flag("training.eval_split", ("--eval-split",), str, "Split to evaluate on [texts kept apart].", _TRAIN),
    Flag("training.tensorboard", ("--tensorboard/--no-tensorboard",), bool, "Also write TensorBoard events.", _TRAIN),
    Flag("grids.levels", ("--levels",), int, "Levels of grey of digits and images, for --objective grid [4].", _TRAIN),
    Flag("grids.size", ("--grid-size",), str, "Resize images to this, for --objective grid.", _TRAIN, metavar="HxW"),
)  # fmt: skip
_ABLATE = "Ablation"
ABLATION = (
    Flag("ablation.enabled", ("--ablate/--no-ablate",), bool,
         "Compare arms (none, ours, literal, placebo, vicreg, orthogonal, compute) over seeds.", _ABLATE),
    Flag("ablation.task", ("--ablate-task",), str, "text (the data set), scan, listops, modular or digits [text].",
         _ABLATE),
    Flag("ablation.arms", ("--arms",), str, "Arms to compare; none is always one of them.", _ABLATE, metavar="A,B"),
    Flag("ablation.seeds", ("--seeds",), int, "Seeds of the final comparison [5].", _ABLATE),
)  # fmt: skip
_GENERATE = "Generation"
GENERATION = (
    Flag("generation.steps", ("--steps",), int, "Passes; each fills the cells the model is surest of [8].", _GENERATE),
    Flag("generation.count", ("--count", "-n"), int, "Grids per class, or completions per grid [10].", _GENERATE),
    Flag("generation.labels", ("--label",), list[str], "Class to generate, or all (repeatable) [the model's mixture].",
         _GENERATE),
    Flag("generation.complete", ("--complete",), str, "Complete the grids in this file; ? is a cell to fill.",
         _GENERATE, metavar="FILE"),
    Flag("generation.size", ("--size",), str, "Size of new grids [the model's largest].", _GENERATE, metavar="HxW"),
    Flag("generation.temperature", ("--temperature",), float, "0 takes the likeliest value of each cell [1].",
         _GENERATE),
    Flag("generation.guidance", ("--guidance",), float, "Push towards the class; needs --label [0].", _GENERATE),
    Flag("generation.noise", ("--noise",), float, "Noise on which cells are filled first [1].", _GENERATE),
    Flag("generation.animate", ("--animate/--no-animate", "--gif/--no-gif"), bool, "Write steps.gif.", _GENERATE),
)  # fmt: skip
_PRUNE = "Pruning"
PRUNING = (
    Flag("pruning.method", ("--method",), str,
         "chain, admm, sparsegpt, wanda, flap, influence, magnitude, random; svdllm, asvd, svd [chain].", _PRUNE),
    Flag("pruning.pattern", ("--pattern",), str,
         "0.5 of every row, layer:0.5, 2:4, mlp:0.25 (channels), heads:0.25, blocks:0.25 or rank:0.25 [0.5].", _PRUNE),
    Flag("pruning.shrink", ("--lambda",), str, "auto, or how little correlations are trusted, 0 to 1 [auto].", _PRUNE),
    Flag("pruning.protect", ("--protect",), str, "Keep the weights of this circuit (of cohom circuits) as they are.",
         _PRUNE, metavar="CIRCUIT"),
    Flag("pruning.calibration", ("--calibration",), str, "Data set to calibrate on [--dataset].", _PRUNE),
    Flag("pruning.calibration_tokens", ("--calibration-tokens",), int, "Tokens of calibration [8192].", _PRUNE),
    Flag("pruning.evaluate", ("--eval",), list[str], "Further data sets to measure on (repeatable).", _PRUNE),
    Flag("pruning.evaluation_tokens", ("--eval-tokens",), int, "Tokens of every evaluation [8192].", _PRUNE),
    Flag("pruning.block_size", ("--block-size",), int, "Tokens per sequence [128].", _PRUNE),
    Flag("pruning.verify", ("--verify/--no-verify",), bool,
         "Load the result in a process without cohom and compare logits.", _PRUNE),
    Flag("pruning.allocation", ("--allocation",), str,
         "uniform, or owl: less of the blocks where outliers carry the function [uniform].", _PRUNE),
    Flag("pruning.rounds", ("--rounds",), int, "Passes in which ever more weights go [1].", _PRUNE, metavar="N"),
    Flag("pruning.recover", ("--recover",), int,
         "Updates of fine-tuning on the calibration texts after every pass [0].", _PRUNE, metavar="STEPS"),
    Flag("pruning.recover_lr", ("--recover-lr",), float, "Peak learning rate of that fine-tuning [0.0001].", _PRUNE),
    Flag("pruning.sweep", ("--sweep",), list[float],
         "A further sparsity to measure for the curve; its model is not kept (repeatable).", _PRUNE),
    Flag("pruning.exactness", ("--exactness/--no-exactness",), bool,
         "Measure what is written and read between blocks, before and after [yes].", _PRUNE),
    Flag("pruning.stream", ("--stream",), str,
         "One block in memory at a time: auto (when the model does not fit), always, never [auto].", _PRUNE),
    Flag("pruning.topology", ("--topology/--no-topology",), bool,
         "Persistence of every layer's states, dense against pruned [no].", _PRUNE),
)  # fmt: skip
_CIRCUIT = "Circuits"
CIRCUITS = (
    Flag("circuits.task", ("--task", "-t"), str, "ioi, greater-than, induction, or a JSON lines file of pairs [ioi].",
         _CIRCUIT),
    Flag("circuits.pairs", ("--pairs",), int, "Pairs of prompts of a shipped task [64].", _CIRCUIT),
    Flag("circuits.level", ("--level",), str, "heads, neurons or edges [heads].", _CIRCUIT),
    Flag("circuits.method", ("--method",), str, "integrated, attribution or exact [integrated].", _CIRCUIT),
    Flag("circuits.base", ("--base",), str, "Run in which components are exchanged: clean or corrupt [clean].",
         _CIRCUIT),
    Flag("circuits.metric", ("--metric",), str, "Difference of logit or probability [auto].", _CIRCUIT),
    Flag("circuits.ablation", ("--ablation",), str, "What replaces the rest: pair, resample or mean [pair].", _CIRCUIT),
    Flag("circuits.steps", ("--steps",), int, "Gradients that method integrated averages [5].", _CIRCUIT),
    Flag("circuits.tolerance", ("--tolerance",), float, "How far from 1 the faithfulness may be [0.1].", _CIRCUIT),
    Flag("circuits.draws", ("--draws",), int, "Corruptions per pair with --ablation resample [3].", _CIRCUIT),
    Flag("circuits.check", ("--check",), int, "Components that are also patched exactly [40].", _CIRCUIT),
    Flag("circuits.minimise", ("--minimise/--no-minimise",), bool,
         "Leave out components one by one as long as the tolerance is kept.", _CIRCUIT),
)  # fmt: skip
PRECISION_STAGE = (
    Flag("precision.enabled", ("--precision/--no-precision",), bool, "Plan formats for every model too.", _PRECISION),
)
GATES = (
    Flag("fail_on", ("--fail-on",), list[str], "Exit 1 when this holds, e.g. 'precision.gap > 0.02' (repeatable).",
         _OUT, metavar="GATE"),
    Flag("output.junit", ("--junit",), str, "Write gates and analyses as JUnit XML.", _OUT, metavar="FILE"),
    Flag("output.sarif", ("--sarif",), str, "Write tripped gates as SARIF 2.1.0.", _OUT, metavar="FILE"),
    Flag("output.markdown", ("--markdown",), str, "Write gates, figures and drift as markdown.", _OUT, metavar="FILE"),
    Flag("output.github_summary", ("--github-summary/--no-github-summary",), bool,
         "Append that markdown to $GITHUB_STEP_SUMMARY.", _OUT),
)  # fmt: skip
OUTPUT = (
    Flag("output.dir", ("--output-dir",), str, "Folder that receives the run folder [experiments].", _OUT),
    Flag("output.name", ("--output", "-o"), str, "Name inside the run folder's name.", _OUT),
    Flag("output.plots", ("--plots/--no-plots",), bool, "Draw plots.", _OUT),
    Flag("output.html", ("--html/--no-html",), bool, "Write report.html.", _OUT),
)
CACHE = (
    Flag("activations.cache", ("--cache/--no-cache",), bool, "Reuse activations of equal runs.", _OUT),
    Flag("activations.store", ("--store-activations",), str,
         "Keep activations in the run folder for compare: auto (up to 256 MiB), always, never [auto].", _OUT),
)  # fmt: skip
COMPARE = (
    Flag("compare.baseline", ("--baseline",), str, "Run folder or model that drift is measured from [the first].",
         "Comparison", metavar="RUN"),
    Flag("compare.checkpoints", ("--checkpoints",), str,
         "Folder of checkpoints (checkpoint-100, step_200, ...), analysed on the same texts in order of step.",
         "Comparison", metavar="DIR"),
    Flag("compare.revisions", ("--revisions",), str, "With --checkpoints MODEL: its revisions, in order.",
         "Comparison", metavar="A,B"),
    Flag("compare.measure", ("--measure",), str,
         "Measure of drift: cka-debiased, nts-e, nts-m, svcca, ..., or diagrams [cka-debiased].", "Comparison"),
    Flag("compare.cross", ("--cross",), str,
         "Measure of all layers of one against all of the other: cka, rtd-lite, ..., none [that of drift].",
         "Comparison", metavar="MEASURE"),
    Flag("compare.permutations", ("--permutations",), int,
         "Test every pair by exchanging blocks of texts, so many random ways where not all can be counted [0].",
         "Comparison", metavar="N"),
    Flag("compare.population", ("--population",), list[str],
         "Models of one population, such as seeds (folder, runs): every model is ranked among them (repeatable).",
         "Comparison", metavar="DIR"),
)  # fmt: skip
CONFIG = (
    Flag("config_file", ("--config", "-c"), Path, "YAML configuration (see cohom init).", _OUT, metavar="FILE"),
    Flag("overrides", ("--set",), list[str], "Set any config key, e.g. --set topology.pca=20.", _OUT, metavar="K=V"),
)
JSON = (Flag("json_output", ("--json",), bool, "Print one JSON document on stdout.", _OUT, default=False),)
TALK = (
    Flag("quiet", ("--quiet", "-q"), bool, "No progress and no logs on stderr.", _OUT, default=False),
    Flag("verbose", ("--verbose", "-v"), bool, "More logs, and tracebacks of internal errors.", _OUT, default=False),
)
DRY_RUN = (Flag("dry_run", ("--dry-run",), bool, "Say what would be done, and write nothing.", _OUT, default=False),)
RESUME = (Flag("resume", ("--resume",), str, "Go on with this interrupted run, or latest.", _OUT, metavar="RUN"),)

ENGINE_OPTIONS = (*MODELS, *DATA, *ANALYSIS, *MACHINE)
CONTROL_OPTIONS = (*OUTPUT, *CACHE, *GATES, *CONFIG, *JSON, *TALK)

Body = Callable[[dict[str, Any]], int]


def add_command(app: typer.Typer, name: str, body: Body, flags: Sequence[Flag], arguments: Sequence[Any] = ()) -> None:
    """Register `body` as command `name`: it receives a dict with the value of every flag and argument.

    `arguments` are ready `inspect.Parameter` objects for positional arguments. The help text is `body`'s docstring.
    """

    def command(**values: Any) -> int:
        return body(values)

    parameters = [*arguments, *(_parameter(flag) for flag in flags)]
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    command.__doc__ = inspect.getdoc(body)
    app.command(name)(command)


def argument(name: str, kind: Any, text: str, default: Any = ...) -> inspect.Parameter:
    """A positional argument for `add_command`."""
    annotation = Annotated[kind, typer.Argument(help=text, show_default=False)]
    empty = inspect.Parameter.empty if default is ... else default
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=empty, annotation=annotation)


def _parameter(flag: Flag) -> inspect.Parameter:
    kind = flag.type if flag.default is not None else flag.type | None
    option = typer.Option(
        *flag.names,
        help=flag.help,
        rich_help_panel=flag.panel,
        hidden=flag.hidden,
        metavar=flag.metavar,
        show_default=False,
    )
    return inspect.Parameter(
        flag.parameter, inspect.Parameter.KEYWORD_ONLY, default=flag.default, annotation=Annotated[kind, option]
    )


def config_flags(values: dict[str, Any]) -> dict[str, Any]:
    """The dotted config keys among a command's values; the ways of naming models and data sets are merged."""
    merged = {key.replace("__", "."): value for key, value in values.items() if "__" in key}
    models = [*(values.get("models") or []), *_split(values.get("models_list")), *(values.get("hf_model") or [])]
    datasets = [*(values.get("datasets") or []), *_split(values.get("datasets_list"))]
    gates = values.get("fail_on")
    return merged | {"models": models or None, "datasets": datasets or None, "fail_on": gates or None}


def _split(text: str | None) -> list[str]:
    return [part.strip() for part in text.split(",")] if text else []
