"""placeholder"""
from .adapter import Model
from .layouts import find_layout
def wrap(hf, tokenizer, *, layout=None, name=None):
    from .probe import probe
    model = Model(hf, tokenizer, layout or find_layout(hf), name or getattr(hf, "name_or_path", "") or type(hf).__name__)
    probe(model)
    return model
