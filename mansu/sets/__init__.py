"""The field's sets and their scores: WMDP, MMLU, TOFU, MUSE."""
