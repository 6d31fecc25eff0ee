"""What a run is made from: every option once, with its default, its meaning and its check."""

from dataclasses import asdict, dataclass, fields

from mbq_train._names import look_up
from mbq_train.conversion.convert import BATCH_NORM_MODES
from mbq_train.coreset.sampling import SAMPLINGS
from mbq_train.coreset.scores import SCORES
from mbq_train.quantize.bits import FLOAT, check_bit_widths, quantized
from mbq_train.quantize.double_rounding import DoubleRounding
from mbq_train.quantize.learned import Learned
from mbq_train.quantize.specs import ActivationSpec, Float, Spec, WeightSpec, flag_of, spec_types
from mbq_train.training.scale_rates import MODES
from mbq_train.training.steps import SCHEDULES

from .option_values import check_number, typed
from .recipe_options import RECIPE_CHECKS
from .spec_options import SPEC_OPTIONS, SpecOptions, setting

OPTIMIZERS, RATES = ("adamw", "adam", "sgd"), ("cosine", "step", "constant")
AUTOCASTS = ("none", "bfloat16")
RECIPE_DEFAULTS = {  # with the defaults each has in place of those of Options
    "plain": {},
    "double-rounding": {"bits": (8, 6, 4, 2), "quantizer": "double-rounding", "scale_rates": "multiplicative",
                        "distill": 0.7},
    "hasb": {"bits": (8, 6, 4, 2), "quantizer": "double-rounding", "scale_rates": "multiplicative", "distill": 0.7,
             "batch_norm": "transitional"},
    "emqnet": {"bits": (32, 8, 4, 2, 1), "quantizer": "any-precision", "weight_correction": True,
               "batch_norm": "shared"},
    "msq": {"bits": (8,), "quantizer": "round-clamp"},
}
GROUPS = ("data", "network", "quantizers", "training", "hasb", "emqnet", "msq")  # of options, as in the command's help


@dataclass(frozen=True)
class Options(SpecOptions):
    """Every option of `mbq train`, written to config.json. Defaults are our choice for the digits.

    Options that belong to a recipe keep their defaults under every other one. `for_recipe` begins with the defaults of
    a recipe. bits may also be given from low to high.

    Raises ValueError (TypeError for bits that are no sequence) for a value out of range, or for one that is no choice,
    with the nearest choice.
    """

    data: str = setting("digits", "digits, or a folder of images, parquet files or CIFAR batches (also under MBQ_DATA)",
                        group="data")
    augment: str = setting("auto", "auto, none, or some of crop,flip,cutout,resized-crop", group="data")
    train_limit: int = setting(0, "train on a balanced subset of this many images; 0: all", low=0, group="data")
    test_limit: int = setting(0, "test on a balanced subset of this many images; 0: all", low=0, group="data")
    image_size: int = setting(0, "resize images to this many pixels; 0: as they are", low=0, group="data")
    workers: int = setting(0, "processes that decode images of sets too large for memory", low=0, group="data")
    model: str = setting("resnet8", "network: a name, timm:NAME, hf:NAME or package.module:factory", group="network")
    recipe: str = setting("plain", "what training does beyond its loop; sets other options that are not given",
                          choices=tuple(RECIPE_DEFAULTS))
    bits: tuple[int, ...] = setting((8, 4, 2), "bit-widths, from high to low; 32: the float path too",
                                    group="quantizers")
    batch_norm: str = setting("per_bit", "one BatchNorm for each bit-width, for each pair of those of two "
                              "layers in a row, or one shared", choices=BATCH_NORM_MODES,
                              group="network")
    quantizer: str = setting("learned", "of weights: a scale for each bit-width, one scale and codes rounded twice, or "
                             "no learned scale (by tanh, by the largest weight)", choices=tuple(spec_types(WeightSpec)),
                             group="quantizers")
    activation_quantizer: str = setting("auto", "of inputs of layers; auto: as quantizer says, learned or its own",
                                        choices=("auto", *spec_types(ActivationSpec)), group="quantizers")
    keep_float: tuple[str, ...] = setting(("first", "last"), "layers that stay in float, by name; first: all that "
                                          "read the network's input, last: the one called last", group="network")
    epochs: int = setting(30, "epochs at all bit-widths together", low=1)
    float_epochs: int = setting(30, "epochs of the float network before", low=1)
    batch_size: int = setting(64, "images in a batch, over all processes", low=1)
    schedule: str = setting("each", "a step after each bit-width, or accumulate gradients and step once",
                            choices=SCHEDULES)
    weight_bank: bool = setting(False, "accumulate: quantize all weights at all bit-widths in one pass; costs 2 copies "
                                "of the weights per bit-width")
    optimizer: str = setting("adamw", "", choices=OPTIMIZERS)
    momentum: float = setting(0.9, "of sgd", low=0, below=1)
    learning_rate: float = setting(1e-3, "of both phases", above=0)
    scale_rate: float = setting(1.0, "learning rate of offsets, and of scales in units of 8 times their first value, "
                                "as a share of learning_rate", above=0)
    scale_rates: str = setting("constant", "how the rate of scales falls with the bit-width in use and the size of "
                               "their gradients (ALRS)", choices=("constant", *MODES))
    rate: str = setting("cosine", "learning rate over the epochs", choices=RATES)
    rate_epochs: tuple[int, ...] = setting((), "step: epochs after which the rate falls to a tenth, of `epochs`", low=1)
    weight_decay: float = setting(5e-5, "not on scales and offsets", low=0)
    clip_norm: float = setting(0.0, "largest norm of the gradient; 0: no limit", low=0)
    distill: float = setting(0.0, "largest share of the soft targets from the highest bit-width an epoch ago; "
                             "0.7 in the paper, 0: off", low=0, high=1)
    autocast: str = setting("none", "dtype of convolutions and matrix products", choices=AUTOCASTS)
    compile: bool = setting(False, "torch.compile the network")
    cuda_graph: bool = setting(False, "capture the whole step in a CUDA graph")
    uniform_epochs: int = setting(10, "hasb: epochs at one bit-width for all layers before layers draw theirs", low=0,
                                  recipe="hasb")
    switch_rate: float = setting(0.5, "hasb: largest sigma, the probability that a layer draws, at the end", low=0,
                                 high=1, recipe="hasb")
    start_from: str = setting("", "hasb: folder of a finished run at the same bit-widths to start from, in place of "
                              "float_epochs", recipe="hasb")
    prune_rate: float = setting(0.8, "emqnet: share of the images that every epoch leaves out", low=0, below=1,
                                recipe="emqnet")
    score: str = setting("grand", "emqnet: what images are drawn by", choices=SCORES, recipe="emqnet")
    score_epochs: int = setting(5, "emqnet: epochs on all images before the first scores", low=0, recipe="emqnet")
    sampling: str = setting("probability", "emqnet: how images are drawn", choices=SAMPLINGS, recipe="emqnet")
    temperature: float = setting(1.0, "emqnet: images are drawn by score^(1 / temperature)", above=0, recipe="emqnet")
    resample: bool = setting(True, "emqnet: draw in every epoch, not once", recipe="emqnet")
    rescore_every: int = setting(0, "emqnet: epochs between two scorings; 0: score once", low=0, recipe="emqnet")
    shared_scores: bool = setting(False, "emqnet: one score for all bit-widths, their mean", recipe="emqnet")
    evaluate_every: int = setting(1, "epochs between two tests", low=1)
    target_compression: float = setting(16.0, "msq: of the quantized weights against float32", recipe="msq", low=1)
    lsb_penalty: float = setting(5e-5, "msq: lambda, on the sum of the last bits of all weights; 0: prune without",
                                 recipe="msq", low=0)
    unit_penalty: bool = setting(False, "msq: leave 2^bits out of the penalty's gradient", recipe="msq")
    prune_interval: int = setting(2, "msq: epochs between two prunings", recipe="msq", low=1)
    prune_threshold: float = setting(0.3, "msq: alpha, a layer loses bits that a smaller share of its weights uses",
                                     recipe="msq", above=0, high=1)
    lowest_bits: int = setting(1, "msq: no layer falls below", recipe="msq", low=1, high=8)
    hessian: bool = setting(True, "msq: layers less sensitive than the average lose 2 bits at once, else all 1",
                            recipe="msq")
    hessian_images: int = setting(256, "training images that the Hessian's traces are measured on", low=1, group="msq")
    hessian_probes: int = setting(20, "most probes of the Hessian's traces", low=2, group="msq")
    hessian_tolerance: float = setting(0.05, "relative standard error at which the traces are good enough", low=0,
                                       group="msq")
    seed: int = setting(0, "of weights, batches and augmentation", low=0, high=2**32 - 1)

    def __post_init__(self):
        for option in fields(self):
            value, limits = typed(option, getattr(self, option.name)), option.metadata
            object.__setattr__(self, option.name, value)
            if "choices" in limits:
                look_up("options", dict.fromkeys(limits["choices"]), value, argument=option.name)
            for number in value if isinstance(value, tuple) else (value,):
                if isinstance(number, (int, float)) and not isinstance(number, bool):
                    check_number(option.name, number, limits)
        if self.bits == tuple(sorted(self.bits)):
            object.__setattr__(self, "bits", self.bits[::-1])
        check_bit_widths("options", self.bits, float_path=True)
        if not quantized(self.bits):
            raise ValueError(f"options: bits must hold one below {FLOAT}, got {self.bits}")
        self._check_quantizers()
        self._check_together()
        self._check_recipe()

    @property
    def weights(self) -> WeightSpec:
        """Return what quantizes weights."""
        return self._spec(spec_types(WeightSpec)[self.quantizer], "weights")

    @property
    def activations(self) -> ActivationSpec:
        """Return what quantizes the inputs of layers: activations of 32 bits are float."""
        if self.activation_bits == FLOAT:
            return Float()
        return self._spec(self._kind_of_activations(), "activations")

    def _kind_of_activations(self) -> type[ActivationSpec]:
        if self.activation_quantizer == "auto":
            return type(self.weights.activations())
        return spec_types(ActivationSpec)[self.activation_quantizer]

    def _spec(self, kind: type[Spec], of: str):
        """Return the spec of `kind` with the options that are given here; 0 stands for a default of None."""
        given = {each: getattr(self, flag_of(each)) for each in fields(kind)
                 if flag_of(each) and each.metadata["of"] == of}
        return kind(**{each.name: (value or None) if each.default is None else value for each, value in given.items()})

    def _check_quantizers(self):
        """Raise ValueError where an option is given of a quantizer that is not used."""
        used = {"weights": self.quantizer, "activations": self._kind_of_activations().name}
        for option in fields(SpecOptions):
            owners, value = SPEC_OPTIONS[option.name], getattr(self, option.name)
            if value != option.default and not any(used[each.metadata["of"]] == name for name, each in owners):
                names, of = " or ".join(name for name, _ in owners), owners[0][1].metadata["of"]
                chooses = {"weights": "quantizer", "activations": "activation_quantizer"}[of]
                raise ValueError(f"options: {option.name} must be left alone unless {chooses} is {names}, got "
                                 f"{value!r} with {used[of]!r}")
        if self.scale_rates != "constant" and not any(isinstance(spec, (Learned, DoubleRounding)) for spec in
                                                      (self.weights, self.activations)):
            raise ValueError("options: scale_rates must be constant where no quantizer learns scales, got "
                             f"{self.scale_rates!r} with {self.quantizer!r}")
        self.weights.check(quantized(self.bits))
        self.activations.check_use("activations")

    def _check_recipe(self):
        for option in fields(self):
            owner, value = option.metadata.get("recipe", self.recipe), getattr(self, option.name)
            if owner != self.recipe and value != option.default:
                raise ValueError(f"options: {option.name} must be left alone unless recipe is {owner}, got {value} "
                                 f"with {self.recipe!r}")
        RECIPE_CHECKS.get(self.recipe, lambda options: None)(self)

    def _check_together(self):
        if self.rate_epochs and self.rate != "step":
            raise ValueError(f"options: rate_epochs must be empty unless rate is step, got rate {self.rate!r}")
        if self.rate == "step" and (not self.rate_epochs or list(self.rate_epochs) != sorted(set(self.rate_epochs))):
            raise ValueError(f"options: rate_epochs must be increasing epochs with rate step, got {self.rate_epochs}")
        if self.weight_bank and self.schedule != "accumulate":
            raise ValueError("options: weight_bank must be off unless schedule is accumulate: with a step after each "
                             f"bit-width the weights change between them, got schedule {self.schedule!r}")
        if self.cuda_graph and self.compile:
            raise ValueError("options: cuda_graph and compile must not both be on: capture the eager step, got both")
        if self.cuda_graph and self.optimizer == "sgd":
            raise ValueError("options: cuda_graph must be off with sgd, which reads its rate on the host, got both")
        if self.distill and len(self.bits) == 1:
            raise ValueError("options: distill must be 0 with one bit-width, which has no higher one to learn from, "
                             f"got {self.distill}")

    @classmethod
    def for_recipe(cls, recipe: str, **given):
        """Return the options `given`, with the recipe's defaults for others. Raises as Options does, and TypeError for
        an unknown option."""
        return cls(recipe=recipe, **(look_up("options", RECIPE_DEFAULTS, recipe, argument="recipe") | given))

    def to_json(self) -> dict:
        """Return a JSON object from which `from_json` makes the same options."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict):
        """Return the options in a JSON object; those that were added after it was written have their defaults.

        Raises ValueError for one that is unknown or of another type.
        """
        if unknown := values.keys() - {option.name for option in fields(cls)}:
            raise ValueError(f"options: must be known, got {', '.join(sorted(unknown))}")
        return cls(**values)
