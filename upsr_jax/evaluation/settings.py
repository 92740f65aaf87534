"""What an evaluation is asked to do."""

import dataclasses

from upsr_jax.data.test_sets import ImageSet


@dataclasses.dataclass(frozen=True)
class Settings:
    """What to evaluate on and how: the values of `config.eval`, and `device`.

    `model` is the folder as the user named it, "" for a run's checkpoint. The first `pictures`
    images are shown during training. `tile`, `overlap` and `blend` are the fields of an Upscaler,
    as is `fidelity` of a Sampling. Every image has noise from the seed of `images`, or from it and
    its own name if `noise_by_name`. A device is given `per_device_batch` tiles, or images to
    measure, at once. `precision`, of the networks' arithmetic, and `device` are those that
    `Upscaler.from_pretrained` takes. `pyiqa` names metrics of that package for training;
    `upsr score` adds them to the results of an evaluation.
    """

    images: ImageSet
    model: str
    metrics: tuple[str, ...]
    tile: int
    overlap: int
    blend: str
    noise_by_name: bool
    per_device_batch: int
    fidelity: float = 0.0
    pictures: int = 1
    pyiqa: tuple[str, ...] = ()
    precision: str | None = None
    device: str | None = None
