"""Which networks the studies compare, and their ablations: one question, a baseline, its arms.

Frozen data alone; nothing here says how long or on which images an arm trains.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from zoo.errors import ZooError, nearest


@dataclass(frozen=True, kw_only=True, slots=True)
class Arm:
    """One side of an ablation: a network and what is changed in its recipe."""

    label: str  # as in zoo/reported/ablations.csv where the studies report it
    model: str
    recipe: str = "study"
    settings: Mapping[str, str] = field(default_factory=dict)  # as for --set
    image_size: int | None = None  # None: as stored
    pretrained: bool = False
    pretraining: str | None = None  # the method of zoo-pretrain that comes first


@dataclass(frozen=True, kw_only=True, slots=True)
class Ablation:
    """One question; each arm differs from the baseline by one thing."""

    study: str
    name: str  # the study's own where it asks one question
    question: str
    baseline: Arm
    arms: tuple[Arm, ...]


def ablations_of(study: str) -> tuple[Ablation, ...]:
    """The questions of a study.

    Raises:
        ZooError: there is no such study.
    """
    if study not in STUDIES:
        raise ZooError(f"no study named {study!r}: {nearest(study, STUDIES)}")
    return tuple(one for one in ABLATIONS if one.study == study)


def _models(baseline: str, /, recipe: str = "study", **arms: str) -> tuple[Arm, tuple[Arm, ...]]:
    """A baseline and arms that differ from it by the network."""
    return (
        Arm(label="baseline", model=baseline, recipe=recipe),
        tuple(Arm(label=label, model=model, recipe=recipe) for label, model in arms.items()),
    )


def _ablation(
    name: str, question: str, sides: tuple[Arm, tuple[Arm, ...]], *, study: str | None = None
) -> Ablation:
    baseline, arms = sides
    return Ablation(study=study or name, name=name, question=question, baseline=baseline, arms=arms)


# ---- the first study -------------------------------------------------------------------------

FIRST = (
    _ablation(
        "eca_kernel",
        "Which kernel of the channel attention is best?",
        _models(
            "resnet_20",
            adaptive="ecanet20_adaptive",
            k3="ecanet20_fixed_k3",
            k5="ecanet20_fixed_k5",
            k7="ecanet20_fixed_k7",
            k9="ecanet20_fixed_k9",
        ),
    ),
    _ablation(
        "eca_position",
        "Where in the block does channel attention belong?",
        _models(
            "resnet_20",
            after_conv1="eca_resnet_20_pos1",
            after_conv2_before_add="eca_resnet_20",
            after_add="eca_resnet_20_pos3",
        ),
    ),
    _ablation(
        "ghost_ratio",
        "How many of the channels may be cheap copies?",
        _models(
            "resnet_20",
            ratio2="ghost_resnet_20",
            ratio3="ghost_resnet_20_r3",
            ratio4="ghost_resnet_20_r4",
        ),
    ),
    _ablation(
        "improved_convnext",
        "Which part of the improved block earns its accuracy?",
        _models(
            "improved_resnet20_convnext",
            no_droppath="improved_resnet20_convnext_no_droppath",
            std_conv="improved_resnet20_convnext_std_conv",
            no_inverted="improved_resnet20_convnext_no_inverted",
        ),
    ),
    _ablation(
        "hyaresnet",
        "Do channel and spatial attention add up?",
        _models(
            "resnet_20",
            eca="ecanet20_adaptive",
            msca="resnet_20_msca",
            both="hyaresnet_20",
        ),
    ),
    _ablation(
        "step_decay",
        "Does a rate that falls in steps do as well as a cosine?",
        (
            Arm(label="cosine", model="resnet_20"),
            (Arm(label="step", model="resnet_20", settings={"schedule": "step"}),),
        ),
    ),
    _ablation(
        "regularisation",
        "Does stronger regularisation help a network of 27M parameters?",
        (
            Arm(label="weight_decay_0.05_dropout_0.1", model="coatnet_cifar_opt"),
            tuple(
                Arm(
                    label=f"{name}_{value}",
                    model="coatnet_cifar_opt",
                    settings={name: value},
                )
                for name, value in (
                    ("weight_decay", "0.1"),
                    ("weight_decay", "0.2"),
                    ("dropout", "0.3"),
                    ("dropout", "0.5"),
                )
            ),
        ),
    ),
    _ablation(
        "pretrained",
        "Do weights of ImageNet help?",
        (
            Arm(label="from_scratch", model="timm:resnet18", image_size=128),
            (Arm(label="imagenet", model="timm:resnet18", image_size=128, pretrained=True),),
        ),
    ),
)

# ---- the plan for CoAtNet-CIFAROpt -----------------------------------------------------------

# Relative attention is as the plan has it, two changes at once: its question says so.

OPT = Arm(label="baseline", model="coatnet_cifar_opt", recipe="coatnet_opt")


def _opt(label: str, **settings: str) -> Arm:
    return Arm(label=label, model=OPT.model, recipe=OPT.recipe, settings=settings)


COATNET = tuple(
    _ablation(name, question, sides, study="coatnet_opt")
    for name, question, sides in (
        (
            "attention",
            "Which channel attention suits the convolution stages?",
            _models(
                OPT.model,
                OPT.recipe,
                se="coatnet_cifar_opt_se",
                none="coatnet_cifar_opt_noattn",
            ),
        ),
        (
            "stem",
            "Does an early convolution with a large view help?",
            _models(
                OPT.model,
                OPT.recipe,
                large_stem="coatnet_cifar_opt_large_stem",
                selective_kernel="coatnet_cifar_opt_lsk",
            ),
        ),
        (
            "layers",
            "Is the configuration of CoAtNet-1 better than the small one?",
            _models(OPT.model, OPT.recipe, full="coatnet_cifar_opt_full"),
        ),
        (
            "csp",
            "Do cross-stage-partial convolution stages help?",
            _models(OPT.model, OPT.recipe, csp="coatnet_cifar_opt_csp"),
        ),
        (
            "relative_attention",
            "Do relative positions help, with a norm before the classifier?",
            _models("coatnet_cifar_opt_s1", OPT.recipe, relative="coatnet_cifar_opt_rel"),
        ),
        (
            "full_augmentation",
            "What does augmentation beyond crop and flip give?",
            (
                _opt("full"),
                (_opt("basic", augment="none", mixup_alpha="0", cutmix_alpha="0"),),
            ),
        ),
        (
            "stochastic_depth",
            "Does stochastic depth help?",
            (_opt("drop_path_0.1"), (_opt("none", drop_path="0"),)),
        ),
        (
            "self_supervised",
            "Does pre-training without labels beat training from scratch?",
            (
                _opt("from_scratch"),
                (
                    Arm(
                        label="simclr",
                        model=OPT.model,
                        recipe=OPT.recipe,
                        pretraining="simclr",
                    ),
                ),
            ),
        ),
    )
)

# ---- the second study ------------------------------------------------------------------------

# Its recipe holds all steps; backwards from there.
UNSMOOTHED = {"label_smoothing": "0"}
PLAIN = UNSMOOTHED | {
    "jitter": "0",
    "flip_p": "0",
    "vertical_flip_p": "0",
    "alternates_plain": "false",
}


def _second(label: str, model: str, settings: Mapping[str, str]) -> Arm:
    return Arm(label=label, model=model, recipe="second_study", settings=settings)


SECOND = (
    _ablation(
        "lr_decay",
        "Does halving the rate every five epochs help?",
        (
            _second("constant", "resnet_18_ca", PLAIN | {"schedule": "constant"}),
            (_second("halve_every_5_epochs", "resnet_18_ca", PLAIN),),
        ),
    ),
    _ablation(
        "activation",
        "Which activation suits the gate of coordinate attention?",
        (
            _second("sigmoid", "resnet_18_ca", PLAIN),
            tuple(
                _second(name, f"resnet_18_ca_{name}", PLAIN) for name in ("relu", "elu", "softmax")
            ),
        ),
    ),
    _ablation(
        "pooling",
        "Does a second kind of pooling help coordinate attention?",
        (
            _second("avg", "resnet_18_ca", PLAIN),
            tuple(
                _second(name, f"resnet_18_ca_{name}", PLAIN)
                for name in ("avg_max", "avg_l1", "avg_l2")
            ),
        ),
    ),
    _ablation(
        "augmentation",
        "Do flips and colours, every other epoch, help?",
        (
            _second("plain", "resnet_18_ca_elu", PLAIN),
            (_second("flip_jitter_alternating", "resnet_18_ca_elu", UNSMOOTHED),),
        ),
    ),
    _ablation(
        "label_smoothing",
        "Do softer labels help?",
        (
            _second("hard_labels", "resnet_18_ca_elu", UNSMOOTHED),
            (_second("smoothed_by_0.1", "resnet_18_ca_elu", {}),),
        ),
    ),
)

ABLATIONS = (*FIRST, *COATNET, *SECOND)
STUDIES = tuple(dict.fromkeys(one.study for one in ABLATIONS))
