"""The same engine on other machines, or on several devices: a batch in slices that depend on it alone, dealt to whoever
is free. It knows no rewards, strategies or refiners.
"""
