"""Small tokenizers of the usual kinds, with chat templates like those in use."""

from functools import cache

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast

CORPUS = [
    "Find x such that x+1=2 and 3<4. The <b>sum</b> is \\frac{1}{2}.",
    "user assistant system model start of turn end im header id begin text eot tool call think",
]

CHATML = (
    "{%- for message in messages %}"
    "{{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}{%- endfor %}"
    "{%- if tools %}<tool_call></tool_call>{%- endif %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
)
THINKING = (
    "{%- for message in messages %}{%- set content = message.content %}"
    "{%- if message.role == 'assistant' and '</think>' in content %}"
    "{%- set content = content.split('</think>')[-1].lstrip('\n') %}{%- endif %}"
    "{{- '<|im_start|>' + message.role + '\n' + content + '<|im_end|>\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n<think>\n' }}{%- endif %}"
)
QWEN_3 = (
    "{%- for message in messages %}"
    "{{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}"
    "{%- if enable_thinking is defined and enable_thinking is false %}"
    "{{- '<think>\n\n</think>\n\n' }}{%- endif %}{%- endif %}"
)
LLAMA_3 = (
    "{{- bos_token }}{%- for message in messages %}{{- '<|start_header_id|>' + message.role "
    "+ '<|end_header_id|>\n\n' + message.content | trim + '<|eot_id|>' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{%- endif %}"
)
GEMMA = (
    "{{ bos_token }}{% for message in messages %}"
    "{% set role = 'model' if message.role == 'assistant' else message.role %}"
    "{{ '<start_of_turn>' + role + '\n' + message.content | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for message in messages %}{% if message.role == 'user' %}"
    "{{ '[INST] ' + message.content + ' [/INST]' }}{% else %}{{ ' ' + message.content + eos_token }}"
    "{% endif %}{% endfor %}"
)
REPEATING = (
    "{% for message in messages %}<|im_start|>{{ message.content }}<|im_end|>{{ message.content }}"
    "{% endfor %}"
)


def byte_level(special, added=(), **options):
    """Byte-level BPE, as in Qwen and Llama 3."""
    core = Tokenizer(models.BPE())
    core.normalizer = normalizers.NFC()
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    _train(core, alphabet)
    return _with_added(core, special, added, options)


def metaspace(special, added=(), scheme="first", **options):
    """BPE over text with ▁ for spaces, as in Mistral and Gemma."""
    core = Tokenizer(models.BPE(unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    core.decoder = decoders.Metaspace(prepend_scheme=scheme)
    alphabet = [*map(chr, range(33, 127)), "\n", "▁", "é"]
    _train(core, alphabet, special_tokens=["<unk>"])
    return _with_added(core, special, added, {"unk_token": "<unk>", **options})


def unigram(special, **options):
    """A Unigram model, whose vocabulary holds the special tokens as ordinary pieces too."""
    core = Tokenizer(
        models.Unigram([(" ", -1.0), *((token, 0.0) for token in special), ("a", -2.0)], unk_id=0)
    )
    return _with_added(core, special, (), options)


def _train(core, alphabet, **options):
    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False, **options)
    core.train_from_iterator(CORPUS, trainer)


def _with_added(core, special, added, options):
    for tokens, is_special in ((special, True), (added, False)):
        core.add_tokens(
            [
                token
                if isinstance(token, AddedToken)
                else AddedToken(token, special=is_special, normalized=False)
                for token in tokens
            ]
        )
    return PreTrainedTokenizerFast(tokenizer_object=core, **options)


def qwen(added=(), template=CHATML):
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>"]
    added = ["<tool_call>", "</tool_call>", "<think>", "</think>", *added]
    return byte_level(special, added, eos_token="<|im_end|>", chat_template=template)


def llama_3():
    special = ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    special += [f"<|reserved_special_token_{number}|>" for number in range(200)]
    return byte_level(special, bos_token=special[0], eos_token="<|eot_id|>", chat_template=LLAMA_3)


def gemma():
    """Its turn marks, its tags and its runs of white space are added tokens, none of them special."""
    added = ["<start_of_turn>", "<end_of_turn>", "<unused0>", "\n\n", "  ", "<b>", "</b>"]
    return metaspace(
        ["<bos>", "<eos>"],
        added,
        scheme="never",
        bos_token="<bos>",
        eos_token="<eos>",
        chat_template=GEMMA,
    )


def mistral(scheme="first"):
    special = ["<s>", "</s>", "[INST]", "[/INST]", "[control_8]"]
    return metaspace(special, scheme=scheme, bos_token="<s>", eos_token="</s>", chat_template=MISTRAL)


def stripping():
    """Control tokens that take the space beside them, one of which is found in normalised text."""
    special = [
        AddedToken("<|im_start|>", special=True, lstrip=True, rstrip=True, normalized=False),
        AddedToken("<|im_end|>", special=True, lstrip=True, normalized=True),
        AddedToken("<z>", special=True, normalized=True),
    ]
    return byte_level(special, eos_token="<|im_end|>", chat_template=CHATML)


def written_in_python():
    """A tokenizer that is not of the tokenizers library."""
    special = ["<|im_start|>", "<|im_end|>", "<z>"]
    return ByT5Tokenizer(extra_ids=0, additional_special_tokens=special, chat_template=CHATML)


KINDS = {
    "qwen": (qwen, "<|vision_start|>"),
    "z_c is not special": (lambda: qwen([AddedToken("<z>", special=False)]), "<z>"),
    "thinking": (lambda: qwen(template=THINKING), "<|vision_start|>"),
    "repeating": (lambda: qwen(template=REPEATING), "<|vision_start|>"),
    "llama 3": (llama_3, "<|reserved_special_token_0|>"),
    "gemma": (gemma, "<unused0>"),
    "mistral": (mistral, "[control_8]"),
    "mistral, a space before each piece": (lambda: mistral("always"), "[control_8]"),
    "stripping": (stripping, "<z>"),
    "written in Python": (written_in_python, "<z>"),
}
"""Tokenizers by name, each with a token that can be its z_c."""


@cache
def tokenizer_of(kind):
    """The tokenizer of a kind, and its z_c."""
    make, z_token = KINDS[kind]
    return make(), z_token
