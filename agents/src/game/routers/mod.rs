//! Rules of the field, one file each, as dynamics of the game.
//!
//! Each states its equation, what is guaranteed and by whom, and whether it is causal: whether a
//! token's experts depend on later tokens. Rules whose state is prices take one step a batch when
//! they are warm and many when they are cold. [`RouterRegistry`](super::RouterRegistry) lists
//! them with their standard settings.

pub(super) mod answer;
mod auction;
mod best_response;
mod best_response_batched;
mod bip;
mod cache_prior;
mod capacity;
mod column;
mod expert_choice;
mod flock;
mod grid;
mod group_limited;
mod hash;
mod hedge;
mod logit;
mod loss_free_bias;
mod quantile_balancing;
mod sinkhorn;
mod smooth_stale;
mod toll;

pub use auction::Auction;
pub use best_response::BestResponse;
pub use best_response_batched::BestResponseBatched;
pub use bip::Bip;
pub use cache_prior::CachePrior;
pub use capacity::{DropBy, TopKCapacity};
pub use expert_choice::ExpertChoice;
pub use flock::{Flight, FlockPrices, FlockRound};
pub use group_limited::GroupLimited;
pub use hash::Hash;
pub use hedge::{Hedge, Played, WeightRule};
pub use logit::Logit;
pub use loss_free_bias::{BiasUpdate, LossFreeBias};
pub use quantile_balancing::{Quantile, QuantileBalancing};
pub use sinkhorn::Sinkhorn;
pub use smooth_stale::{Migration, SmoothStale};
