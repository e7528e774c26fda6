"""The keys of `config.distill`."""

import dataclasses

from convit_jax.config.data_keys import ABOVE_0_TO_1
from convit_jax.config.typed import fixed_key, key
from convit_jax.values.ranges import when

KINDS = ("hard", "soft")
_HAS_TEACHER = when("distill.teacher", named=True)


@dataclasses.dataclass(frozen=True)
class DistillConfig:
    """Distillation from a teacher, a trained model whose predictions are learned too (Table 4)."""

    teacher: str = fixed_key(
        "",
        "the trained model: anything that convit_jax.load_model takes, or a .stablehlo program "
        "from normalised images to logits, which may be of another library; '': no distillation. "
        "With model.distillation_token the second head learns from it, else the only one",
    )
    kind: str = key(
        "hard",
        "'hard': its most likely class is a second label; 'soft': its probabilities are "
        "(Touvron et al. 2021, eq. 3 and 2)",
        one_of=KINDS,
        read_if=(_HAS_TEACHER,),
    )
    alpha: float = key(
        0.5,
        "share of the teacher's term in the loss; the other share is that of the labels",
        **ABOVE_0_TO_1,
        read_if=(_HAS_TEACHER,),
    )
    temperature: float = key(
        3.0,
        "both models' logits are divided by it before the softmax, if kind is 'soft'",
        above=0,
        read_if=(_HAS_TEACHER, when("distill.kind", one_of=("soft",))),
    )
