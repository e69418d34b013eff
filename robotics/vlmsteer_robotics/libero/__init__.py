"""LIBERO (Liu et al., NeurIPS 2023) by OpenVLA's protocol (arXiv 2406.09246, appendix E; `run_libero_eval.py`).

    import vlmsteer
    from vlmsteer_robotics import libero

    session = vlmsteer.load("openvla/openvla-7b-finetuned-libero-spatial")
    print(libero.evaluate(session, "libero_spatial", recipe, out="spatial.jsonl").success)

LIBERO itself comes from `hf-libero`, the extra `libero`; its scenes from the hub or wherever it keeps them already.
"""

from vlmsteer_robotics.libero.evaluation import Evaluation, evaluate
from vlmsteer_robotics.libero.trials import STEPS, Trial

__all__ = ["STEPS", "Evaluation", "Trial", "evaluate"]
