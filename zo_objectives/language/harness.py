"""What lm-evaluation-harness's files may say and ours may not, each with what to do instead."""

_ROWS = "write the finished rows to DATA/<task>/train.jsonl and test.jsonl and give --data-dir DATA"
_SCORE = "score with a metric of ours in metric_list, or with a function of yours as file.py:name there or in zo.objective"
_GROUP = "a group of tasks is no task; give each of its tasks a file of its own"
_TEXT = "models here read text alone; leave it out"

FIELDS = {
    "process_docs": f"name one of ours in zo.prepare, or {_ROWS}",
    "process_results": _SCORE,
    "custom_dataset": _ROWS,
    "doc_to_image": _TEXT,
    "doc_to_audio": _TEXT,
    "use_prompt": "copy promptsource's template into doc_to_text, doc_to_target and doc_to_choice",
    "group": "its name today is tag",
    "group_alias": _GROUP,
    "aggregate_metric_list": _GROUP,
    "weight_by_size": _GROUP,
    "task_list": _GROUP,
    "class": "a task written in Python is no data file; write its prompt as doc_to_text, doc_to_target and doc_to_choice",
    "unsafe_code": "code is run by a function of yours alone, named in zo.objective as file.py:name",
    "gen_prefix": "write it at the end of doc_to_text, behind target_delimiter",
    "multiple_inputs": "write the whole prompt in doc_to_text and what differs in doc_to_choice",
    "multiple_targets": "leave it out: a list in doc_to_target gives several right answers",
    "template_aliases": "write what it sets into the templates that use it",
    "gold_alias": "write it in doc_to_target",
    "samples": _ROWS,
}
FUNCTIONS = {  # fields that hold a `!function`
    "process_docs": FIELDS["process_docs"],
    "process_results": FIELDS["process_results"],
    "metric_list": "name a metric of ours, or a function of yours as file.py:name",
    "filter_list": _SCORE,
    "custom_dataset": FIELDS["custom_dataset"],
    "doc_to_image": _TEXT,
    "doc_to_audio": _TEXT,
}
TEMPLATE = f"write it as a Jinja template on the row's columns, or {_ROWS}"  # the other fields that hold one
OUTPUT_TYPES = {
    "loglikelihood": "for right and wrong continuations write multiple_choice with doc_to_choice; for the likelihood of one"
    " target write generate_until and zo.objective: cross_entropy",
    "loglikelihood_rolling": "perplexity of whole texts is no objective here; write generate_until with the text in"
    " doc_to_target and zo.objective: cross_entropy",
    "greedy_until": "its name today is generate_until",
}
FILTERS = {
    "take_first_k": "one completion is made for each prompt: take_first",
    "majority_vote": "one completion is made for each prompt: take_first",
    "regex_pos": _SCORE,
    "multi_choice_regex": "write output_type: multiple_choice, which scores the options, or a regex of your own",
    "format_span": _SCORE,
    "custom": _SCORE,
}
GENERATION = {
    "num_beams": "texts are made greedily, or sampled with do_sample: true",
    "max_new_tokens": "its name here is max_gen_toks",
    "max_tokens": "its name here is max_gen_toks",
    "max_length": "count the new tokens alone, in max_gen_toks",
    "stop": "its name here is until",
    "stop_sequences": "its name here is until",
}
METRIC = {
    "hf_evaluate": "leave it out; a metric of evaluate is named in zo.objective, through a file.py:name that calls it",
    "multi_aggregate": "leave it out",
}
FEWSHOT = {"samples": "demonstrations are rows of fewshot_split; put yours there, and write sampler: first_n"}
