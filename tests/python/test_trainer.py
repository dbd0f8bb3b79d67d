# SPDX-License-Identifier: MIT
"""lowbit.optim in transformers' Trainer: a run that is stopped and resumed."""

from pathlib import Path
from typing import Any

import lowbit
import pytest
import torch
from lowbit.nn import Int8Linear
from lowbit.optim import AdamW8bit
from reference import same_bits
from torch import Tensor

transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")

STEPS, STOP = 6, 4
OPTIONS = {"lr": 1e-2, "min_8bit_size": 1024}


class Stop(transformers.TrainerCallback):
    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        control.should_training_stop = state.global_step == STOP


def texts() -> list[dict[str, Tensor]]:
    starts = torch.randint(0, 200, (64, 1), generator=torch.Generator().manual_seed(0))
    ids = starts + torch.arange(24) % 4
    return [{"input_ids": row, "labels": row} for row in ids]


def trainer(folder: Path, checkpoint: str, passed: str, trainable: bool, **more: Any) -> Any:
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_pretrained(checkpoint)
    if trainable:
        lowbit.quantize_(model, trainable=True)
    arguments = transformers.TrainingArguments(
        output_dir=str(folder),
        max_steps=STEPS,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        max_grad_norm=0.5,
        learning_rate=OPTIONS["lr"],
        lr_scheduler_type="cosine",
        warmup_steps=2,
        save_steps=2,
        logging_steps=1,
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        **more,
    )
    if passed == "optimizers":
        params = [p for p in model.parameters() if p.requires_grad]
        given: dict[str, Any] = {"optimizers": (AdamW8bit(params, **OPTIONS), None)}
    else:
        given = {"optimizer_cls_and_kwargs": (AdamW8bit, OPTIONS)}
    return transformers.Trainer(model, arguments, train_dataset=texts(), **given)


@pytest.mark.parametrize(
    ("passed", "trainable", "more"),
    [
        ("optimizers", False, {}),
        ("optimizer_cls_and_kwargs", False, {}),
        ("optimizers", True, {}),
        ("optimizers", False, {"bf16": True}),
    ],
)
def test_a_resumed_run_has_the_bits_of_an_uninterrupted_one(
    checkpoints: dict[str, str],
    tmp_path: Path,
    passed: str,
    trainable: bool,
    more: dict[str, Any],
) -> None:
    def start(name: str) -> Any:
        return trainer(tmp_path / name, checkpoints["llama"], passed, trainable, **more)

    straight = start("straight")
    straight.train()
    losses = [log["loss"] for log in straight.state.log_history if "loss" in log]
    assert len(losses) == STEPS
    assert losses[-1] < losses[0]

    stopped = start("stopped")
    stopped.add_callback(Stop())
    stopped.train()
    assert stopped.state.global_step == STOP
    resumed = start("stopped")
    resumed.train(resume_from_checkpoint=str(tmp_path / "stopped" / f"checkpoint-{STOP}"))
    assert resumed.state.global_step == STEPS

    expected = straight.model.state_dict()
    assert all(same_bits(value, expected[n]) for n, value in resumed.model.state_dict().items())
    optimizers = [t.optimizer.optimizer for t in (straight, resumed)]
    assert all(type(optimizer) is AdamW8bit for optimizer in optimizers)
    states = [optimizer.state_dict() for optimizer in optimizers]
    assert states[0]["param_groups"] == states[1]["param_groups"]
    codes = 0
    for key, state in states[0]["state"].items():
        for name, value in state.items():
            assert same_bits(value, states[1]["state"][key][name])
            codes += value.dtype == torch.uint8
    assert codes > 20
    assert trainable == any(isinstance(m, Int8Linear) for m in resumed.model.modules())
