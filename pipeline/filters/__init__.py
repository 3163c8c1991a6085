"""What texts are left out for: words in common with others, with evaluation prompts, their language, their length."""

from mmpo.pipeline.filters.contamination import (
    NGRAM,
    SHARE,
    TEXT_FILES,
    EvaluationPrompts,
    contaminated,
    evaluation_files,
    read_evaluation,
)
from mmpo.pipeline.filters.duplicates import compared, duplicates, near_texts, prompt_texts, texts_of_prompts
from mmpo.pipeline.filters.language import check_languages, other_languages
from mmpo.pipeline.filters.length import check_tokenizer, token_counts, tokenizer_file
from mmpo.pipeline.filters.rules import CONFIDENCE, SHINGLE, SIMILARITY, PromptRules, Verdict
