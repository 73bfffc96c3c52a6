"""Low-rank adapters on the attention projections, through `peft`.

LoRA (Hu et al., "LoRA: Low-rank adaptation of large language models", 2021, arXiv 2106.09685)
keeps a projection W frozen and trains its change as a product of two thin matrices, with rank r
and scale α:

    W' = W + (α / r) B A,    A: (r, d_in), random at the start;  B: (d_out, r), zero at the start

Clients k with weights p_k want the mean of their changes, Σ p_k B_k A_k. Averaging A and B
separately gives (Σ p_k B_k)(Σ p_k A_k) instead, which differs by Σ p_k (B_k − B̄)(A_k − Ā): by how
much the clients' A and B vary together. The scopes answer this differently:

- ``lora`` sends both and accepts the difference. It is small while clients stay close, and grows
  with local steps and with differences between the clients' data.
- ``lora-b`` freezes A at the same random start on every node and sends B: with A_k = A the average
  is exact, Σ p_k B_k A = B̄ A, at half the adapters' bytes. (FFA-LoRA: Sun, Li, Li and Ding,
  "Improving LoRA in privacy-preserving federated learning", 2024, arXiv 2403.12313. Under
  differential privacy, noise is not multiplied by noise either.)
- ``lora-a`` sends A and keeps B on the node. No product is averaged: what B says is each client's
  own, what A reads is common. (FedSA-LoRA: Guo, Zeng, Wang, Fan, Wang and Qu, "Selective
  aggregation for low-rank adaptation in federated learning", 2024, arXiv 2410.01463.) Each client
  then has a model of its own, and the server none.

All three train and send the head too: a new one is random, and no adapter reaches it.
"""

import torch

from fedattn_app.config import LoraConfig
from fedattn_app.models.classifier import Classifier
from fedattn_app.models.families import family_of
from fedattn_app.optional_dependency import needing_extra


def add_adapters(model: Classifier, config: LoraConfig, seed: int, shared: str) -> None:
    """Put adapters on the attention projections of `model`, in place; A depends on `seed` alone.

    Raises `UserError` for a family whose projections are not known and where `peft` is missing.
    """
    family = family_of(model.family, model.state_dict(), shared)
    with needing_extra(f"shared = {shared!r}: LoRA"):
        import peft
    adapter = peft.LoraConfig(
        r=config.lora_rank,
        lora_alpha=config.lora_alpha,
        target_modules=family.projections(config.roles),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        peft.inject_adapter_in_model(adapter, model)
