//! The software device: memory, MMU, faults and kernels for learning and testing.
