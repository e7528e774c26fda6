"""The keys of `config.optimizer`."""

import dataclasses

from convit_jax.config.data_keys import ABOVE_0_TO_1, FROM_0_BELOW_1
from convit_jax.config.typed import fixed_key, key
from convit_jax.values.ranges import when

# Weight decay applies to matrices, not to biases, norms, gates, LayerScale, class tokens and
# absolute positions: 70 tensors of a ConViT decay, 110 do not, as in the released recipe on one
# device.
NO_DECAY = (r".*\.(bias|scale|gating)", r"(cls|dist)_token|pos_embed")
# The parameters frozen in rows f and g of paper Table 3: all of the GPSA layers' attention.
GPSA_ATTENTION = r"blocks\.{gpsa}\.attention\..*"
OPTIMIZERS = ("adamw", "lamb", "muon")


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """The update rule, its learning rate schedule, frozen parameters, clipping, accumulation."""

    name: str = fixed_key(
        "adamw",
        "'adamw', 'lamb' (You et al. 2020) or 'muon' (Jordan et al. 2024) for the matrices of "
        "attention and MLPs, with AdamW for the other parameters",
        one_of=OPTIMIZERS,
    )
    learning_rate: float = key(
        5e-4,
        "peak learning rate for `learning_rate_batch` images; scales with the batch size",
        above=0,
    )
    learning_rate_batch: int = key(512, "batch size that `learning_rate` refers to", at_least=1)
    warmup: str = key("5 epochs", "duration of the linear warm-up", duration=True)
    warmup_learning_rate: float = key(
        1e-6,
        "where the warm-up starts; does not scale",
        at_least=0,
        read_if=(when("optimizer.warmup", duration=True, above=0),),
    )
    min_learning_rate: float = key(1e-5, "where the cosine ends; does not scale", at_least=0)
    b1: float = key(0.9, "decay rate of Adam's first moment", **FROM_0_BELOW_1)
    b2: float = key(0.999, "decay rate of Adam's second moment", **FROM_0_BELOW_1)
    eps: float = key(1e-8, "added to the square root of Adam's second moment", above=0)
    weight_decay: float = key(0.05, "decoupled weight decay", at_least=0)
    no_decay: tuple[str, ...] = key(
        NO_DECAY,
        "regular expressions of parameters that do not decay; each must match some parameter",
        read_if=(when("optimizer.weight_decay", above=0),),
    )
    frozen: tuple[str, ...] = fixed_key(
        (),
        "regular expressions of parameters that are not trained, so have no gradients and moments; "
        "each must match some parameter; {gpsa} stands for the numbers of the GPSA layers",
    )
    layer_decay: float = fixed_key(
        1.0,
        "factor of the learning rate from a layer to the one below it, for fine-tuning; 1: none",
        **ABOVE_0_TO_1,
    )
    schedule_every: str = key(
        "step",
        "how often the learning rate changes: each 'step', or each 'epoch'",
        one_of=("step", "epoch"),
    )
    schedule_lag: int = key(
        0,
        "epochs by which the learning rate lags: 1 in the released code, which starts with two "
        "epochs of the smallest",
        at_least=0,
    )
    clip_norm: float = key(
        0.0, "largest global norm of the trained parameters' gradient; 0: no clipping", at_least=0
    )
    accumulate: int = key(
        0,
        "parts in which a batch is computed, to save memory; 0: as many as are fastest, by the "
        "compiler's estimate, on TPU v5e without mesh.fsdp, and 1 on others. Each part draws its "
        "own dropout and stochastic depth",
        at_least=0,
    )
