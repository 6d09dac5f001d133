"""Load any image classifier by name, with its preprocessing, its class names and its grid of tokens.

    timm:NAME           weights from the hub        timm:NAME@FILE          a local checkpoint in timm's parameter names
    torchvision:NAME    its default weights         torchvision:NAME@FILE   a local state dict
    hf:ID               a Hugging Face model        hf:FOLDER               the same from a folder
    zoo:NAME            `clearhead.zoo`'s, random   zoo:NAME@FILE           with the weights of a file
    FOLDER              what `save_model`, timm's `save_for_hf` or transformers' `save_pretrained` wrote, or the folder
                        of a run of clearhead: its checkpoint/

A FILE can be the checkpoint of a training script: see `clearhead.models.checkpoint_io.read_state`.

>>> model = load_model("timm:deit_tiny_patch16_224")
>>> logits = model(model.preprocess.image(image)[None])  # pixels in 0..1; 1 x 1000
>>> save_model(model, "my-model")  # an ordinary checkpoint: timm.create_model("local-dir:my-model", pretrained=True)

A module of your own becomes a classifier by `from_module`; `as_classifier` takes a module, a classifier or a name.

Names of architectures, checkpoint formats and preprocessing are the libraries' own. One probe forward adds what they
do not offer: how the tokens of a vision transformer cover the image (`TokenGrid`).
"""

from clearhead.models.classifier import Classifier, TokenGrid
from clearhead.models.errors import ModelError, NoHeadError
from clearhead.models.from_module import from_module
from clearhead.models.load import load_model
from clearhead.models.preprocessing import Preprocessing
from clearhead.models.save import save_model
from clearhead.models.source import as_classifier

__all__ = [
    "Classifier",
    "ModelError",
    "NoHeadError",
    "Preprocessing",
    "TokenGrid",
    "as_classifier",
    "from_module",
    "load_model",
    "save_model",
]
