"""Eight emulated devices for every test; they must be asked for before JAX starts a backend."""

import jax

jax.config.update("jax_num_cpu_devices", 8)
