"""Criteria that are not the paper's, under the same protocol: (model, batches) -> (layer, head) scores.

All follow ``scoring.Criterion``: float64, -inf for heads that are gone, low scores go first. Those of a loss need
``labels`` in every batch; a text labelled -100 is in no loss.
"""

from .controls import oracle as oracle
from .controls import shuffled_labels as shuffled_labels
from .controls import shuffled_weights as shuffled_weights
from .of_gnorm import gnorm_balanced as gnorm_balanced
from .of_gnorm import gnorm_by_layer as gnorm_by_layer
from .of_gnorm import gnorm_by_text as gnorm_by_text
from .of_gnorm import gnorm_cross_entropy as gnorm_cross_entropy
from .of_gnorm import gnorm_margin as gnorm_margin
from .of_loss import fisher as fisher
from .of_loss import head_importance as head_importance
from .of_loss import hies as hies
from .of_loss import output_saliency as output_saliency
from .of_outputs import flap as flap
from .of_outputs import output_norm as output_norm
from .of_outputs import weight_magnitude as weight_magnitude
