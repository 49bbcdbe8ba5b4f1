# The face of the package. What stands here is imported on first use, so `import gleak` is quick.
# figures needs the extra `figures`; gleak.flower (extra `flower`) is imported by its name.

from . import answers as answers
from . import client as client
from . import data as data
from . import datasets as datasets
from . import defences as defences
from . import defended as defended
from . import figures as figures
from . import inversion as inversion
from . import labels as labels
from . import metrics as metrics
from . import models as models
from . import network as network
from . import pools as pools
from . import risk as risk
from . import training as training
from . import update as update
from . import wire as wire
from .client import fedavg as fedavg
from .client import fedsgd as fedsgd
from .data import Batch as Batch
from .data import draw_batch as draw_batch
from .data import list_datasets as list_datasets
from .data import load_batch as load_batch
from .inversion import invert as invert
from .inversion import list_attacks as list_attacks
from .inversion import list_update_models as list_update_models
from .labels import compare_labels as compare_labels
from .labels import guess_samples as guess_samples
from .labels import label_posterior as label_posterior
from .labels import list_label_methods as list_label_methods
from .labels import restore_labels as restore_labels
from .labels import single_images as single_images
from .metrics import score as score
from .metrics import score_drift as score_drift
from .metrics import score_labels as score_labels
from .models import build_model as build_model
from .models import list_models as list_models
from .pools import list_pools as list_pools
from .pools import load_pool as load_pool
from .provenance import provenance as provenance
from .training import trained_model as trained_model
from .update import Contradiction as Contradiction
from .update import GradientUpdate as GradientUpdate
from .update import MissingKnowledge as MissingKnowledge
from .update import Update as Update
from .update import WeightsUpdate as WeightsUpdate

__version__: str
