# SPDX-License-Identifier: MIT
"""The steps of examples/finetune, each of which prints what it found."""

import copy
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import finetune_report
import forms
import language_model
import lora
import outliers
import pretraining
import report
import training
from corpus import manual, split
from forms import Form
from language_model import Score, Texts
from lora import Run
from outliers import Planted
from rich.console import Console
from training import Curve
from transformers import LlamaForCausalLM, logging


@dataclass(frozen=True)
class Settings(pretraining.Settings):
    outlier_features: int = 2
    outlier_factor: int = 64
    rank: int = 8
    lora_steps: int = 300
    lora_learning_rate: float = 1e-3


QUICK = Settings(**pretraining.SMALL, lora_steps=60)

# The bases of LoRA, by their names in forms.FORMS.
BASES = {"fp32 base": "fp32", "NF4 base": "NF4, double quantization"}

console = Console()


def run(settings: Settings, output: Path) -> None:
    logging.set_verbosity_error()
    warnings.filterwarnings("ignore", ".*is_gradient_checkpointing", FutureWarning)  # PEFT's
    code, prose = read(settings)
    model, curve = pretrain(settings, code)
    planted_model = copy.deepcopy(model)
    planted = plant(settings, planted_model, code)
    trained_forms, planted_forms = (
        {name: forms.make(each, options) for name, options in forms.FORMS.items()}
        for each in (model, planted_model)
    )
    trained, with_outliers = (
        language_model.scores({name: f.model for name, f in each.items()}, code.held_out, title)
        for each, title in (
            (trained_forms, "Perplexity as trained"),
            (planted_forms, "Perplexity with outliers"),
        )
    )
    console.print(finetune_report.sizes(trained_forms))
    console.print(finetune_report.perplexities(trained, with_outliers))
    runs = {
        name: fine_tune(settings, planted_forms[form].model, prose, f"LoRA over the {name}")
        for name, form in BASES.items()
    }
    console.print(finetune_report.fine_tuning(runs))

    picture = output / "finetune.png"
    title = f"A Llama of {model.num_parameters() / 1e6:.1f} M parameters in low-bit forms"
    finetune_report.picture(picture, title, trained, with_outliers, runs)
    report.write(
        console,
        picture,
        settings=asdict(settings),
        training=asdict(curve),
        planted=asdict(planted),
        forms={
            name: measured(form, trained[name], with_outliers[name])
            for name, form in trained_forms.items()
        },
        lora={name: asdict(run) for name, run in runs.items()},
    )


def read(settings: Settings) -> tuple[Texts, Texts]:
    """Code, from which the tokenizer learns too, and prose."""
    with console.status("Reading and tokenizing"):
        tokenizer, code = pretraining.read(settings)
        prose = language_model.texts(
            tokenizer, *split(manual()), settings.context, settings.windows
        )
    console.print(f"Python's standard library: {code}")
    console.print(f"Its language reference: {prose}")
    return code, prose


def pretrain(settings: Settings, code: Texts) -> tuple[LlamaForCausalLM, Curve]:
    model = pretraining.build(settings)
    learning = pretraining.training(settings, model, code)
    training.run({"Training": learning})
    curve = learning.curve
    first, *_, last = curve.held_out.values()
    console.print(
        f"A Llama of {model.num_parameters():,} parameters, {settings.steps} steps in "
        f"{sum(curve.seconds):.0f} s: held-out loss {first:.2f} -> {last:.2f}"
    )
    return model, curve


def plant(settings: Settings, model: LlamaForCausalLM, code: Texts) -> Planted:
    tokens = language_model.windows(code.training, settings.context, 32)
    planted = outliers.plant(model, tokens, settings.outlier_features, settings.outlier_factor)
    console.print(
        f"{settings.outlier_features} of its {settings.hidden} features made "
        f"{settings.outlier_factor} times as large: |x| up to {planted.largest:.0f} and "
        f"{100 * planted.share:.0f} % of them outliers, {planted.largest_elsewhere:.1f} at most "
        "elsewhere; the same logits, bit for bit",
        soft_wrap=True,
    )
    return planted


def fine_tune(settings: Settings, base: LlamaForCausalLM, prose: Texts, title: str) -> Run:
    return lora.fine_tune(
        base,
        prose,
        rank=settings.rank,
        title=title,
        steps=settings.lora_steps,
        batch=settings.batch,
        learning_rate=settings.lora_learning_rate,
        evaluations=settings.evaluations,
    )


def measured(form: Form, trained: Score, with_outliers: Score) -> dict[str, Any]:
    return {
        "bits_per_weight": form.bits_per_weight,
        "linear_bytes": form.linear_bytes,
        "model_bytes": form.model_bytes,
        "weight_error": form.weight_error,
        "as_trained": asdict(trained),
        "with_outliers": asdict(with_outliers),
    }
