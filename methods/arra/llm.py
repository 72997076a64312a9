"""ARRA's language model over captions and image codes, and the projector of its states."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fedlab.data.files.captions import END_TOKENS
from fedlab.errors import ConfigError
from fedlab.methods.arra.sequences import PAD, Layout
from fedlab.methods.arra.settings import ARRASettings, LLMSettings
from fedlab.models.image_codes import ImageCodes


class Answer(NamedTuple):
    """What a language model makes of sequences.

    Args:
        logits: of the next token (n, T, V).
        hidden: states after the chosen block (n, T, d).
    """

    logits: Tensor
    hidden: Tensor


class TokenLLM(nn.Module):
    """A causal language model of `transformers` over captions and image codes.

    Args:
        model: the language model, with an embedding for every token of the layout.
        layout: how sequences are made.
    """

    def __init__(self, model: Any, layout: Layout) -> None:
        super().__init__()
        self.model, self.layout = model, layout

    @property
    def width(self) -> int:
        return int(self.model.config.hidden_size)

    def forward(self, ids: Tensor, layer: int) -> Answer:
        """Answer for sequences (n, T) padded on the right, where causal attention needs no mask.

        Args:
            ids: tokens.
            layer: number of the block whose output is returned, from 1; 0 would be the embeddings.
        """
        found = self.model(input_ids=ids, output_hidden_states=True, use_cache=False)
        return Answer(found.logits, found.hidden_states[layer])

    @torch.no_grad()
    def generate(
        self, text: Tensor, generator: torch.Generator, *, temperature: float, top_k: int, guidance: float
    ) -> Tensor:
        """Draw images for captions: codes (n, cells).

        Only codes can be drawn inside an image. With guidance g, logits are u + g (c − u): c with the caption, u with
        nothing before BOI.

        Args:
            text: captions (n, L).
            generator: seeds the draws.
            temperature: divides the logits.
            top_k: number of the most likely codes that are drawn from.
            guidance: g; 1 is without guidance.
        """
        layout = self.layout
        ids, mask = layout.prompts(text)
        nothing, _ = layout.prompts(torch.zeros_like(text[:, :1]))
        nothing = nothing[:, -(1 + layout.rep) :]
        unconditional = {
            "guidance_scale": guidance,
            "negative_prompt_ids": nothing,
            "negative_prompt_attention_mask": torch.ones_like(nothing),
        }
        devices = [ids.device] if ids.device.type == "cuda" else []
        with torch.random.fork_rng(devices):  # transformers draws from the global generator
            torch.manual_seed(int(torch.randint(2**31, (1,), generator=generator)))
            drawn: Tensor = self.model.generate(
                ids,
                attention_mask=mask,
                suppress_tokens=layout.not_codes,
                do_sample=True,
                temperature=temperature,
                top_k=min(top_k, layout.codes),
                top_p=1.0,
                max_new_tokens=layout.cells,
                use_cache=True,
                **(unconditional if guidance != 1 else {}),
            )
        return drawn[:, ids.shape[1] :] - layout.first_code


def make_llm(s: ARRASettings, vocabulary: tuple[str, ...], text_length: int, tokenizer: ImageCodes) -> TokenLLM:
    """A new language model of a given size, or a pre-trained one with further tokens.

    Args:
        s: size or checkpoint, and what is aligned.
        vocabulary: of the captions.
        text_length: number of tokens of the longest caption.
        tokenizer: of the images.

    Raises:
        ConfigError: there is no such checkpoint, or it has fewer words, blocks or positions than are needed.
    """
    model: Any = None if s.llm.pretrained is None else _load_llm(s.llm.pretrained, s.llm.dropout)
    layout = Layout(
        words=len(vocabulary) if model is None else int(model.config.vocab_size),
        ends=tuple(vocabulary.index(token) for token in END_TOKENS if token in vocabulary),
        codes=tokenizer.count,
        cells=math.prod(tokenizer.grid),
        rep=s.positions == "rep",
    )
    if model is None:
        model = _new_llm(s.llm, layout.size, layout.longest(text_length))
    else:
        _check_llm(model.config, s, len(vocabulary), layout.longest(text_length))
        model.resize_token_embeddings(layout.size, mean_resizing=False)
    if s.zero_codes:
        with torch.no_grad():
            model.get_output_embeddings().weight[layout.first_code :] = 0
    # whoever loads the exported model finds here what its tokens are
    model.config.image_tokens = {"boi": layout.boi, "eoi": layout.eoi, "first_code": layout.first_code}
    model.generation_config.eos_token_id = None  # the length of an image is known
    return TokenLLM(model, layout)


def _new_llm(s: LLMSettings, tokens: int, positions: int) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": s.width, "intermediate_size": s.hidden, "num_hidden_layers": s.blocks}
    ends = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": PAD, "tie_word_embeddings": False}
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=tokens,
            max_position_embeddings=positions,
            num_attention_heads=s.heads,
            attention_dropout=s.dropout,
            **sizes,
            **ends,
        )
    )


def _check_llm(config: Any, s: ARRASettings, words: int, positions: int) -> None:
    """Refuse a checkpoint that is too small."""
    if words > config.vocab_size:
        expected = f"at most the {config.vocab_size} of method.llm.pretrained"
        fix = "set data.source.tokenizer to the tokenizer of the language model"
        raise ConfigError("data.source", f"captions out of {words} tokens", expected, fix)
    if positions > config.max_position_embeddings:
        expected = f"a language model with at least {positions} positions, not {config.max_position_embeddings}"
        fix = "shorten the captions (data.source.length), or use a tokenizer with fewer codes in an image"
        raise ConfigError("method.llm.pretrained", s.llm.pretrained, expected, fix)
    for key, layer in {"layer": s.layer, "probed_layer": s.probed}.items():
        if layer > config.num_hidden_layers:
            raise ConfigError(f"method.{key}", layer, f"a block from 1 to {config.num_hidden_layers}")


def _load_llm(source: str, dropout: float) -> Any:
    from transformers import AutoModelForCausalLM

    try:
        return AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32, attention_dropout=dropout)
    except (OSError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300]
        expected = "a causal language model on the hub, in its cache, or a folder written by save_pretrained"
        raise ConfigError("method.llm.pretrained", source, expected, reason) from error


class Projector(nn.Sequential):
    """A_φ: a hidden state of the language model → a vector of the external encoder; Linear, GELU, Linear.

    Args:
        width: of the language model, d.
        out: of the encoder, D.

    Source: arXiv 2503.07334; ``arra/model/adaptor.py`` of the authors' code.
    """

    def __init__(self, width: int, out: int) -> None:
        super().__init__(nn.Linear(width, out), nn.GELU(), nn.Linear(out, out))
