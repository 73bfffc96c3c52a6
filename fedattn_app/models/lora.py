"""Low-rank adapters on the attention projections, through `peft`.

LoRA (Hu et al., "LoRA: Low-rank adaptation of large language models", 2021, arXiv 2106.09685)
freezes a projection W and trains a change to it, the product of two thin matrices of rank r, with
scale α:

    W' = W + (α / r) B A,    A: (r, d_in), initially random;    B: (d_out, r), initially zero

The average of the changes of clients k with weights p_k is Σ p_k B_k A_k. Averaging A and B
separately gives (Σ p_k B_k)(Σ p_k A_k), which differs by Σ p_k (B_k − B̄)(A_k − Ā), the covariance
of A and B over the clients. Each scope handles this difference in its own way:

- ``lora`` sends A and B and accepts the difference. It is small while clients stay close. It grows
  with the number of local steps and with the differences between the clients' data.
- ``lora-b`` freezes A at the same random values on every node and sends B. The average is then
  exact, Σ p_k B_k A = B̄ A, and the adapters need half the bytes. Under differential privacy, noise
  is never multiplied by noise. (FFA-LoRA: Sun, Li, Li and Ding, "Improving LoRA in
  privacy-preserving federated learning", 2024, arXiv 2403.12313.)
- ``lora-a`` sends A and keeps B on the node, so no product is averaged. Each client has its own
  model, and the server has no complete one. (FedSA-LoRA: Guo, Zeng, Wang, Fan, Wang and Qu,
  "Selective aggregation for low-rank adaptation in federated learning", 2024, arXiv 2410.01463.)

All three also train and send the head, because a new head is random and has no adapter.
"""

import torch

from fedattn_app.config import LoraConfig, as_toml
from fedattn_app.models.classifier import Classifier
from fedattn_app.models.families import family_of
from fedattn_app.models.initialise import initialise
from fedattn_app.optional_dependency import needing_extra


def add_adapters(model: Classifier, config: LoraConfig, seed: int, shared: str) -> None:
    """Add adapters to the attention projections of `model`, in place.

    The initial A depends only on `seed`. `shared` is the value of that key, for the error text.
    Raises `UserError` for a family that is not in `FAMILIES`, and if `peft` is not installed.
    """
    family = family_of(model.family, model.state_dict(), shared)
    with needing_extra(f"shared = {as_toml(shared)}: LoRA"):
        import peft
    adapter = peft.LoraConfig(
        r=config.lora_rank,
        lora_alpha=config.lora_alpha,
        target_modules=family.projections(config.roles),
    )
    with torch.random.fork_rng(devices=[]):
        peft.inject_adapter_in_model(adapter, model)
    initialise(model, seed, [name for name, _ in model.named_parameters() if ".lora_A." in name])
