"""Options of the optimizer, the learning rate and the training loss."""

from dataclasses import dataclass, field
from typing import Literal

from perceiver_dist.range_checks import check_range

ModelPart = Literal["latents", "encodings", "positions", "cross_attends", "latent_blocks", "decoder"]


@dataclass(frozen=True)
class OptimConfig:
    """Optimizer, learning rate schedule and training loss; biases and norms have no weight decay.

    Attributes:
        optimizer: adamw; or lamb, the papers' choice for large batches, which takes a larger learning rate.
        learning_rate: Peak learning rate, reached after the warm-up. 2e-3 suits the small default model; larger
            models need less.
        learning_rate_batch: Global batch for which learning_rate is given: the peak is multiplied by the run's global
            batch (train.lanes * train.micro_batch) and divided by this (Goyal et al. 2017), as in the authors' code,
            which gives 5e-4 for 256. null takes learning_rate as it is.
        warmup_steps: Optimizer steps of linear warm-up from 0.
        schedule: Schedule after the warm-up. cosine: constant until flat_fraction, then cosine decay to final_fraction.
            steps: multiplied by decay_factor at each of decay_at. constant: no decay.
        final_fraction: With cosine, the learning rate at the last step, as a fraction of the peak. 0, since decay to
            zero gives the best final weights when the length of the run is fixed.
        flat_fraction: With cosine, the fraction of the run's steps before the decay begins; 0.5 in Perceiver IO's
            recipe for ImageNet. 0 decays right after the warm-up.
        decay_at: With steps, fractions of the run's steps; the default corresponds to epochs 84, 102 and 114 of 120,
            as in the paper on ImageNet.
        decay_factor: With steps, the factor of each decay; 0.1 as in the paper.
        weight_decay: Decoupled weight decay. 0.1 as in Perceiver IO.
        decay_latents: Whether latents, modality encodings and the queries of the decoder have weight decay too, as in
            the authors' code, which decays all learned positions. Learned positions of tokens have it either way.
        frozen: Parts of the model that are not trained: latents, encodings (of modalities), positions (learned ones),
            cross_attends, latent_blocks, decoder. For fine-tuning; heads are always trained.
        beta1: Decay rate of the moving average of the gradient, per step; AdamW's usual value.
        beta2: Decay rate of the moving average of the squared gradient, per step; 0.99 is below the usual 0.999, for
            short runs. The authors' code has 0.999.
        eps: Added to the root of the averaged squared gradient. null is the authors' 1e-8 for adamw and 1e-6 for lamb.
        head_rate: Factor of the learning rate of the heads' weights, which begin small (`model.initial_logit_std`).
            null means 10 with adamw, whose steps do not depend on a weight's size, and 1 with lamb, whose steps are
            relative to it. 1 as in the papers.
        clip_norm: Maximum global L2 norm of the gradient; 0 disables clipping. The authors use 10; 1 is safer for small
            batches.
        label_smoothing: Share of each training label that is spread evenly over all classes; for multilabel sources
            over the class and its absence. The authors' code has 0.1 on ImageNet. Only the training loss has it: losses
            of evaluations are plain, so the two are not comparable.
        latent_dropout: Share of the latents, drawn for each unit, that training leaves out, for small data; 0 for none.
        stochastic_depth: Probability that training leaves the last latent self-attention layer out of a sample; of
            earlier layers it is less, in proportion to their place. For small data; 0 for none.
        ema_decay: Decay per step of an exponential moving average of the weights, such as 0.999; 0 keeps none. In the
            first steps it is (1 + step) / (10 + step), if that is less. Training continues with the weights
            themselves; evaluations and everything that uses the trained model take the average, which checkpoints hold
            too.
    """

    optimizer: Literal["adamw", "lamb"] = "adamw"
    learning_rate: float = 2e-3
    learning_rate_batch: int | None = None
    warmup_steps: int = 50
    schedule: Literal["cosine", "steps", "constant"] = "cosine"
    final_fraction: float = 0.0
    flat_fraction: float = 0.0
    decay_at: tuple[float, ...] = (0.7, 0.85, 0.95)
    decay_factor: float = 0.1
    weight_decay: float = 0.1
    decay_latents: bool = False
    frozen: list[ModelPart] = field(default_factory=list)
    beta1: float = 0.9
    beta2: float = 0.99
    eps: float | None = None
    head_rate: float | None = None
    clip_norm: float = 1.0
    label_smoothing: float = 0.0
    latent_dropout: float = 0.0
    stochastic_depth: float = 0.0
    ema_decay: float = 0.0

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
            UserError: A number is outside its range.
        """
        fractions = ["final_fraction", "flat_fraction", "decay_factor", "beta1", "beta2", "decay_at"]
        check_range(self, "optim.", ["learning_rate"] + ["eps"] * (self.eps is not None), above=0)
        check_range(self, "optim.", ["head_rate"] * (self.head_rate is not None), above=0)
        check_range(
            self, "optim.", ["learning_rate_batch"] * (self.learning_rate_batch is not None), at_least=1
        )
        shares = ["label_smoothing", "latent_dropout", "stochastic_depth", "ema_decay"]
        check_range(self, "optim.", shares, at_least=0, below=1)
        check_range(self, "optim.", ["warmup_steps", "weight_decay", "clip_norm"], at_least=0)
        check_range(self, "optim.", fractions, at_least=0, at_most=1)
