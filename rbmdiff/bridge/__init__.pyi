from . import comparison as comparison
from . import gumbel as gumbel
from . import limit as limit
from . import meanfield as meanfield
from . import recovery as recovery
from . import score as score
from . import tilted as tilted
