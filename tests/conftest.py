from __future__ import annotations

from hypothesis import settings

# Time decides no test: an example that takes long on a busy machine is not a failure.
settings.register_profile("docduet", deadline=None)
settings.load_profile("docduet")
