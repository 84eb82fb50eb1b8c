"""What the model sees: answers alone are targets, whatever the template does; what does not fit is told."""

from __future__ import annotations

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from penjing.data.encode import Plain, encode, encode_all, messages_of, pair, preference
from penjing.data.records import Record
from penjing.errors import PenjingError
from penjing.runtime.chat import ChatTemplate

CHATML = (
    "{% if messages[0].role != 'system' %}<|im_start|>system\nBe good.<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% for m in messages %}<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n"
    "{{ m.content | trim }}<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
LLAMA2 = (
    "{% for m in messages %}{% if m.role == 'user' %}{{ bos_token }}[INST] {{ m.content }} [/INST]"
    "{% elif m.role == 'assistant' %} {{ m.content }} {{ eos_token }}{% endif %}{% endfor %}"
)
#: thoughts of earlier turns are taken out, and the prompt for an answer opens one, as Qwen3's does
THINKING = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' and not loop.last %}{{ m.content.split('</think>')[-1] | trim }}"
    "{% else %}{{ m.content }}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n\n</think>\n\n{% endif %}"
)
SPECIAL = ["<|im_start|>", "<|im_end|>", "<start_of_turn>", "<end_of_turn>", "<s>", "</s>"]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    """Byte-level BPE that learnt to join a few words."""
    found = Tokenizer(models.BPE())
    found.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    found.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=320, special_tokens=SPECIAL, initial_alphabet=alphabet)
    found.train_from_iterator(["hello there, how are you", "assistant\nhello"] * 9, trainer)
    return found


def chat(*contents: str, system: str = "") -> Record:
    messages = [{"role": "system", "content": system}] if system else []
    roles = ("user", "assistant")
    messages += [{"role": roles[at % 2], "content": content} for at, content in enumerate(contents)]
    return Record("chat", "a", 1, messages=tuple(messages))


def learnt(example, tokenizer) -> list[str]:
    """The text of each run of targets."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], example.target_T.astype(int), [0]])))
    runs = zip(edges[::2], edges[1::2], strict=True)
    return [tokenizer.decode(example.token_T[a:b].tolist(), skip_special_tokens=False) for a, b in runs]


@pytest.mark.parametrize(
    ("template", "wanted"),
    [
        (ChatTemplate(CHATML), ["hello<|im_end|>", "fine\n\n1.<|im_end|>"]),
        (ChatTemplate(GEMMA, "<s>", "</s>"), ["hello<end_of_turn>", "fine\n\n1.<end_of_turn>"]),
        (ChatTemplate(LLAMA2, "<s>", "</s>"), [" hello </s>", " fine\n\n1. </s>"]),
        (ChatTemplate(THINKING), ["hello<|im_end|>", "fine\n\n1.<|im_end|>"]),
        (Plain("</s>"), ["hello</s>", "fine\n\n1.</s>"]),
    ],
    ids=["chatml", "gemma", "llama2", "thinking", "plain"],
)
def test_answers_alone_are_targets(tokenizer, template, wanted):
    record = chat("hello", "hello", "hello there", "fine\n\n1.")
    example = encode(record, tokenizer, template, max_tokens=500)
    assert learnt(example, tokenizer) == wanted
    assert example.left_out == 0
    whole = tokenizer.decode(example.token_T.tolist(), skip_special_tokens=False)
    assert whole == template.render(record.messages, add_generation_prompt=False)


def test_thoughts_that_the_template_takes_out_are_not_learnt(tokenizer):
    record = chat("a", "<think>x</think>hello", "b", "<think>y</think>you")
    example = encode(record, tokenizer, ChatTemplate(THINKING), max_tokens=500)
    assert learnt(example, tokenizer) == ["hello<|im_end|>", "<think>y</think>you<|im_end|>"]


def test_a_template_that_changes_answers_is_an_error(tokenizer):
    template = ChatTemplate("{% for m in messages %}{{ m.content | upper }}{{ loop.length }}{% endfor %}")
    with pytest.raises(PenjingError, match="changes this answer"):
        encode(chat("a", "hello", "b", "you"), tokenizer, template, max_tokens=99)


def test_a_token_never_joins_a_prompt_and_its_answer(tokenizer):
    assert len(tokenizer.encode("assistant\nhello").ids) == 1  # the fixture learnt to join them
    template = ChatTemplate(CHATML)
    record = chat("hi", "hello")
    example = encode(record, tokenizer, template, max_tokens=99)
    prompt = tokenizer.encode(template.render(record.messages[:1]), add_special_tokens=False).ids
    assert example.token_T[: len(prompt)].tolist() == prompt  # as when the model is asked
    assert learnt(example, tokenizer) == ["hello<|im_end|>"]


def test_long_prompts_lose_their_middle_and_keep_the_answer(tokenizer):
    record = chat("First words. " + "how are you " * 200 + "Last words?", "hello")
    example = encode(record, tokenizer, ChatTemplate(CHATML), max_tokens=120)
    whole = tokenizer.decode(example.token_T.tolist(), skip_special_tokens=False)
    assert 100 < len(example.token_T) <= 120
    assert "First words." in whole
    assert "Last words?" in whole
    assert learnt(example, tokenizer) == ["hello<|im_end|>"]
    full = encode(record, tokenizer, ChatTemplate(CHATML), max_tokens=10_000)
    assert example.left_out == len(full.token_T) - len(example.token_T)


def test_an_answer_that_is_too_long_leaves_the_prompt_whole(tokenizer):
    example = encode(chat("hello there", "z" * 400), tokenizer, ChatTemplate(CHATML), max_tokens=100)
    whole = tokenizer.decode(example.token_T.tolist(), skip_special_tokens=False)
    assert "hello there<|im_end|>" in whole
    assert len(example.token_T) == 100
    assert example.left_out > 300


def test_texts_become_windows_without_loss(tokenizer):
    record = Record("text", "a", 1, text="hello there, how are you " * 30)
    examples = list(encode_all(record, tokenizer, None, max_tokens=17, eos="</s>"))
    tokens = np.concatenate([example.token_T for example in examples]).tolist()
    assert tokens == [*tokenizer.encode(record.text).ids, tokenizer.token_to_id("</s>")]
    assert all(not example.target_T[0] and example.target_T[1:].all() for example in examples)
    cut = encode(record, tokenizer, None, max_tokens=17, eos="</s>")
    assert cut.left_out == len(tokens) - 17


def test_classes_are_asked_about(tokenizer):
    record = Record("classification", "a", 1, text="hello {x}", labels=("greeting", "joy"))
    assert messages_of(record, "Intent of: {text}")[0]["content"] == "Intent of: hello {x}"
    example = encode(record, tokenizer, ChatTemplate(CHATML), max_tokens=99, question="Intent of: {text}", label=4)
    assert learnt(example, tokenizer) == ["greeting, joy<|im_end|>"]
    assert example.label == 4


def test_preferences_share_their_prompt(tokenizer):
    record = Record("preference", "a", 1, messages=chat("hi").messages, chosen="hello", rejected="no")
    chosen, rejected = preference(record, tokenizer, ChatTemplate(CHATML), max_tokens=99)
    assert learnt(chosen, tokenizer) == ["hello<|im_end|>"]
    assert learnt(rejected, tokenizer) == ["no<|im_end|>"]
    start = int(chosen.target_T.argmax())
    assert chosen.token_T[:start].tolist() == rejected.token_T[:start].tolist()


def test_pairs_have_no_targets(tokenizer):
    record = Record("pairs", "a", 1, text="hello", second="you", negative="are")
    found = pair(record, tokenizer, max_tokens=99)
    assert [tokenizer.decode(one.token_T.tolist()) for one in found] == ["hello", "you", "are"]
    assert not any(one.target_T.any() for one in found)


def test_impossible_lengths(tokenizer):
    with pytest.raises(PenjingError, match="teach nothing"):
        encode(chat("a", "b"), tokenizer, None, max_tokens=1)
