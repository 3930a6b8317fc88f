"""The nodes: sockets and widgets. What they do is in ``inst_core``."""
from comfy_api.latest import ComfyAPI, ComfyExtension, io

from ..inst_core import host
from .adapter import InSTApplyStyleAdapter
from .color import InSTMatchColor
from .compare import InSTComparisonGrid, InSTMetrics
from .guess import InSTGuessStyle
from .inversion import InSTCosineScheduler, InSTSample, InSTStochasticInvert
from .learn import InSTLearnStyle
from .size import InSTFitToModel, InSTTileModel
from .style import InSTImportEmbeddings, InSTLoadStyle, InSTSaveStyle, InSTStyleConditioning
from .styleshot import InSTApplyStyleShot, InSTLoadStyleShot
from .transfer import InSTGatysStyleTransfer, InSTLoadStyleTransferModel, InSTTransferStyle

NODES: list[type[io.ComfyNode]] = [
    InSTLearnStyle,
    InSTStyleConditioning,
    InSTStochasticInvert,
    InSTSample,
    InSTLoadStyle,
    InSTSaveStyle,
    InSTImportEmbeddings,
    InSTMatchColor,
    InSTCosineScheduler,
    InSTLoadStyleTransferModel,
    InSTTransferStyle,
    InSTGatysStyleTransfer,
    InSTLoadStyleShot,
    InSTApplyStyleShot,
    InSTComparisonGrid,
    InSTMetrics,
    InSTFitToModel,
    InSTTileModel,
    InSTApplyStyleAdapter,
    InSTGuessStyle,
]

# Nodes that were renamed, for workflows that were saved before; none so far. An id is for ever: the editor offers the
# new node in the place of the old one.
REPLACED: tuple[io.NodeReplace, ...] = ()


class InSTExtension(ComfyExtension):
    async def on_load(self) -> None:
        host.files.register_folders()
        host.files.offer_samples()
        host.routes.add_routes()
        for replaced in REPLACED:
            await ComfyAPI().node_replacement.register(replaced)

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return NODES
