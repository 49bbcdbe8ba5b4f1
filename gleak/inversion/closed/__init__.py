"""What a gradient gives away in closed form: activations, and sometimes images.

branches  which of two inputs a unit had behind GELU and its like
embedding the image that a vision transformer saw, from its patch embedding
graph     the traced graph of a network
chain     the network as a chain of layers
count     how far the peeling may go, by counting equations
groups    a convolution in groups, as so many convolutions
held      least squares held to a guess, which bear wrong slopes
known     what is known on the way down: the gradient, and a place between two layers
layers    what can be told of each kind of layer: a table
patches   the input of a convolution from its gradient alone
peel      from the classifier towards the image, layer by layer
pooling   which place of a max-pooling's window held the maximum
positions which row of a gradient belongs to which position of which image
relu      which units behind a layer were active
residual  through residual blocks, pooling and batch norm
spear     images from a first linear layer
start     a hidden linear layer in place of the classifier
solve     linear algebra that these share
"""

from gleak.inversion.closed.count import Counted, count_equations, ends_at
from gleak.inversion.closed.embedding import Patches, embedded_image
from gleak.inversion.closed.peel import Peeled, peel
from gleak.inversion.closed.spear import exact_images, spear

__all__ = [
    "Counted",
    "Patches",
    "Peeled",
    "count_equations",
    "embedded_image",
    "ends_at",
    "exact_images",
    "peel",
    "spear",
]
