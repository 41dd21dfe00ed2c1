//! Key material: no `Debug`, no `Clone`, no serde, zeroed on drop (I-K8).

use zeroize::{Zeroize, ZeroizeOnDrop};

/// A 256-bit secret.
#[derive(Zeroize, ZeroizeOnDrop)]
pub struct SecretKey([u8; 32]);

impl SecretKey {
    /// Takes the bytes over; the caller's copy is zeroed.
    #[must_use]
    pub fn take(bytes: &mut [u8; 32]) -> SecretKey {
        let key = SecretKey(*bytes);
        bytes.zeroize();
        key
    }

    /// The bytes, for a cipher or a key derivation; never for a message or a file in clear.
    #[must_use]
    pub fn expose(&self) -> &[u8; 32] {
        &self.0
    }

    /// A second holder of the same secret: named, so that each place is seen in review.
    #[must_use]
    pub fn duplicate(&self) -> SecretKey {
        SecretKey(self.0)
    }
}
