"BrainHarmonix in Brainmarks, which imports every module of this namespace package"
from brainharmonix.bench.brainmarks import register

register()
